"""The chat engine on a GPU: its kernels, its graphs, and what it generates.

Free of everything but the engines' needs: `python -m pytest --noconftest tests/gpu` runs them on a
machine with torch, Triton and transformers.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.batching_engine import BatchingEngine
from omai_ray.engines.chat.decode_graphs import sizes
from omai_ray.engines.chat.protocol import GenerationRequest, SamplingParams, StepOutput
from omai_ray.engines.chat.sampler import Sampler, draw
from omai_ray.engines.native.kernels import Kernels, kernels
from tests.chat import collect, tokens
from tests.checkpoints import save_chat_checkpoint

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no GPU on this machine"
)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
GREEDY = SamplingParams(temperature=0)
CONFIGS: list[tuple[type[PreTrainedConfig], dict[str, Any]]] = [
    (LlamaConfig, {}),
    (Qwen3Config, {"head_dim": 16, "num_key_value_heads": 2}),
    (MistralConfig, {"num_key_value_heads": 1, "sliding_window": 16}),
    (Gemma3TextConfig, {"head_dim": 16, "num_key_value_heads": 2, "sliding_window": 16}),
    (GPT2Config, {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}),
]


@pytest.fixture(params=list(TOLERANCE))
def native(request: pytest.FixtureRequest) -> Kernels:
    """Return the kernels for each dtype."""
    found = kernels(request.param, "cuda")
    assert found is not None
    return found


def close(found: Tensor, expected: Tensor) -> None:
    """Compare as closely as the dtype allows."""
    atol = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.float(), expected.float(), rtol=atol, atol=atol)


@pytest.mark.parametrize("width", [16, 64, 80, 128])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (32, 8)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("copies", [1, 40])
def test_attention_equals_torchs_own(
    native: Kernels, width: int, heads: int, key_heads: int, window: int | None, copies: int
) -> None:
    """Split or not; the new key and value are stored where they belong, and nothing else."""
    torch.manual_seed(0)
    lengths = [1, 7, 333] * copies
    starts = [512 * at for at in range(len(lengths))]
    random.Random(0).shuffle(starts)
    shape = (512 * len(lengths), key_heads, width)
    keys, values = (torch.randn(shape, dtype=native.dtype, device="cuda") for _ in range(2))
    count = len(lengths)
    query = torch.randn(heads, count, width, dtype=native.dtype, device="cuda").transpose(0, 1)
    key, value = (
        torch.randn(count, key_heads, width, dtype=native.dtype, device="cuda") for _ in range(2)
    )
    expected_keys = keys.clone()
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        expected_keys[start + length - 1] = key[row]
    out = torch.full((count, heads, width), float("nan"), dtype=native.dtype, device="cuda")
    native.attend(
        *(query, key, value, keys, values, torch.tensor(starts, device="cuda")),
        *(torch.tensor(lengths, dtype=torch.int32, device="cuda"), 0.3, window, out),
    )
    assert torch.equal(keys, expected_keys)
    for row in (0, 1, 2, count - 1):
        start, length = starts[row], lengths[row]
        seen = slice(start + max(0, length - window if window else 0), start + length)
        past_keys, past_values = (
            part[seen].transpose(0, 1)[None].float() for part in (keys, values)
        )
        own = query[row][None, :, None].float()
        expected = scaled_dot_product_attention(
            own, past_keys, past_values, scale=0.3, enable_gqa=True
        )
        close(out[row], expected[0, :, 0])


def test_norms_products_and_rotations_equal_torchs_own(native: Kernels) -> None:
    """For rows of any width."""
    torch.manual_seed(0)
    values = torch.randn(2, 7, 96, dtype=native.dtype, device="cuda")
    weight = torch.randn(96, dtype=native.dtype, device="cuda")
    for offset, early in ((0.0, True), (1.0, False)):
        expected = rms_norm(values.float(), (96,), weight.float() + offset, 1e-6)
        close(native.rms_norm(values, weight, 1e-6, offset, early), expected)
    gate, up = values.float().chunk(2, -1)
    close(native.gated_product(values, gate_first=True, gate="silu"), silu(gate) * up)
    close(native.gated_product(values, gate_first=False, gate="silu"), silu(up) * gate)
    states = torch.randn(7, 3, 24, dtype=native.dtype, device="cuda").transpose(0, 1)
    angles = torch.randn(7, 24, device="cuda")
    cos, sin = angles.cos().to(native.dtype), angles.sin().to(native.dtype)
    turned = torch.cat([-states[..., 12:], states[..., :12]], -1)
    expected = states.float() * cos.float() + turned.float() * sin.float()
    close(native.rotate(states, cos, sin), expected)


def spec(path: Path, **options: Any) -> ModelSpec:
    """Return an entry that puts the model on the GPU."""
    entry: dict[str, Any] = {"name": "m", "task": "chat", "source": str(path), "num_gpus": 1}
    return ModelSpec(**{**entry, "kv_cache_gib": 0.5, **options})


def generate(entry: ModelSpec, requests: list[GenerationRequest]) -> list[list[StepOutput]]:
    """Return the answers of an engine that is asked everything at once."""

    async def run() -> list[list[StepOutput]]:
        answers = await asyncio.gather(*(collect(engine, request) for request in requests))
        await engine.drain()
        return answers

    engine = BatchingEngine(entry)
    engine.start()
    return asyncio.run(run())


@pytest.mark.parametrize(("config", "options"), CONFIGS)
def test_float32_is_continued_as_by_generate(
    tmp_path: Path, config: type[PreTrainedConfig], options: dict[str, Any]
) -> None:
    """Token for token, whatever else is in the batch."""
    save_chat_checkpoint(tmp_path, config=config, **options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).to("cuda")
    prompts = [[5, 9, 40], [7], list(range(11, 60)), [100, 101]]
    entry = spec(tmp_path, dtype="float32")
    asked = [GenerationRequest(str(i), p, 40, GREEDY) for i, p in enumerate(prompts)]
    for prompt, answer in zip(prompts, generate(entry, asked), strict=True):
        ids = torch.tensor([prompt], device="cuda")
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=40,
                do_sample=False,
                pad_token_id=0,
            )
        assert tokens(answer) == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("config", "options"), CONFIGS)
def test_bfloat16_generates_what_a_plain_forward_finds_likeliest(
    tmp_path: Path, config: type[PreTrainedConfig], options: dict[str, Any]
) -> None:
    """Within rounding: with graphs, chunks, shared prefixes, growing extents and preemption."""
    save_chat_checkpoint(tmp_path, config=config, **options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).to("cuda")
    rng = random.Random(0)
    shared = [rng.randrange(200) for _ in range(33)]
    prompts = [
        (shared if at % 3 == 0 else []) + [rng.randrange(200) for _ in range(rng.randint(1, 60))]
        for at in range(40)
    ]
    entry = spec(tmp_path, dtype="bfloat16", max_running_requests=13)
    asked = [
        GenerationRequest(str(i), p, rng.randint(1, 90), GREEDY) for i, p in enumerate(prompts)
    ]
    for prompt, answer in zip(prompts, generate(entry, asked), strict=True):
        generated = tokens(answer)
        ids = torch.tensor([prompt + generated], device="cuda")
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        best = logits.amax(1)
        assert ((best - chosen) <= 0.05 * logits.abs().amax(1)).all()


def test_one_token_at_a_time_uses_graphs_and_finds_the_same(tmp_path: Path) -> None:
    """The graph's logits are those of the same forward without it."""
    save_chat_checkpoint(tmp_path)
    entry = spec(tmp_path, dtype="bfloat16", max_running_requests=20)
    asked = [GenerationRequest(str(i), [5 + i, 9], 60, GREEDY) for i in range(20)]
    engine = BatchingEngine(entry)
    engine.start()
    runner: Any = engine._runner
    assert runner._graphs.count == len(sizes(20))

    async def run() -> list[list[int]]:
        return [tokens(a) for a in await asyncio.gather(*(collect(engine, r) for r in asked))]

    with_graphs = asyncio.run(run())
    runner._graphs = None
    again = [GenerationRequest(f"b{i}", r.prompt_ids, 60, GREEDY) for i, r in enumerate(asked)]
    asked[:] = again
    without = asyncio.run(run())
    alike = sum(a == b for a, b in zip(with_graphs, without, strict=True))
    assert alike >= 15  # bfloat16 differs between sizes of a batch


def test_drawing_on_the_gpu_equals_drawing_on_the_cpu() -> None:
    """Every parameter, the same seeds, the same tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 1000, generator=generator) * 4
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, logit_bias={5: 100.0}),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=0.7, top_p=0.9, seed=2),
        SamplingParams(temperature=1.3, top_k=40, seed=3),
        SamplingParams(temperature=1.0, min_p=0.05, seed=4),
        SamplingParams(temperature=1.0, presence_penalty=1.5, frequency_penalty=0.5, seed=5),
        SamplingParams(temperature=1.0, repetition_penalty=1.2, seed=6, logprobs=3),
        SamplingParams(temperature=5.0, seed=7),
    ]
    here = [Sampler(p, [1, 2, 3]) for p in params]
    there = [Sampler(p, [1, 2, 3]) for p in params]
    for _ in range(20):
        expected = [token for token, _ in draw(logits, here)]
        assert [token for token, _ in draw(logits.cuda(), there)] == expected
