"""LoRA adapters: several resident at once, each for its own requests."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, OPTConfig

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.batching_engine import BatchingEngine
from omai_ray.engines.chat.protocol import GenerationRequest, SamplingParams
from omai_ray.errors import CheckpointError, ModelNotFound
from tests.chat import greedy
from tests.checkpoints import save_chat_checkpoint

GREEDY = SamplingParams(temperature=0)
PROMPT = list(range(5, 45))
ATTENTION = ["self_attn.q_proj", "self_attn.v_proj"]
ALL = [*ATTENTION, "self_attn.k_proj", "self_attn.o_proj"]
ALL += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def save_adapter(
    directory: Path, checkpoint: Path, targets: list[str], seed: int, **config: Any
) -> Path:
    """Write a random adapter of rank 4 in peft's layout."""
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(checkpoint / "model.safetensors")
    tensors = {}
    for layer in range(2):
        for target in targets:
            path = f"model.layers.{layer}.{target}"
            out, into = weights[f"{path}.weight"].shape
            for part, shape in (("A", (4, into)), ("B", (out, 4))):
                name = f"base_model.model.{path}.lora_{part}.weight"
                tensors[name] = torch.randn(shape, generator=generator) * 0.3
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": targets, **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def merged(checkpoint: Path, adapter: Path, scale: float) -> Any:
    """Return the model with an adapter added to its weights."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, down in tensors.items():
        if ".lora_A" in name:
            up: Tensor = tensors[name.replace("lora_A", "lora_B")]
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            model.get_submodule(path).weight.data += scale * up @ down
    return model


async def answer(
    engine: BatchingEngine, name: str, prompt: list[int], adapter: str
) -> tuple[list[int], int]:
    """Return an answer's tokens, and how many of the prompt's were cached."""
    request = GenerationRequest(name, prompt, 16, GREEDY, adapter=adapter)
    outputs = [output async for output in engine.generate(request)]
    return [t for output in outputs for t in output.token_ids], outputs[0].cached_tokens


async def test_each_request_is_answered_by_its_own_adapter(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Token for token as merged weights do, together with others and the model itself."""
    small = save_adapter(tmp_path / "small", checkpoint, ATTENTION, 1)
    large = save_adapter(tmp_path / "large", checkpoint, ALL, 2, use_rslora=True)
    adapters = {"small": str(small), "large": str(large)}
    spec = ModelSpec(name="m", task="chat", source=str(checkpoint), adapters=adapters)
    engine = BatchingEngine(spec)
    engine.start()
    models = {
        "": AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        "small": merged(checkpoint, small, 8 / 4),
        "large": merged(checkpoint, large, 8 / 2),
    }
    cases = [(name, PROMPT[:length]) for length in (3, 17, 40) for name in models]
    answers = await asyncio.gather(
        *(answer(engine, f"{at}", prompt, name) for at, (name, prompt) in enumerate(cases))
    )
    wanted = [greedy(models[name], prompt, 16) for name, prompt in cases]
    assert [tokens for tokens, _ in answers] == wanted
    assert len({tuple(tokens) for tokens in wanted[-3:]}) == 3
    assert (await answer(engine, "again", PROMPT, "small"))[1] == len(PROMPT) - 1
    with pytest.raises(ModelNotFound, match="no adapter 'other'"):
        await answer(engine, "unknown", PROMPT, "other")
    await engine.drain()


async def test_layers_that_read_rows_without_a_batch_are_adapted(tmp_path: Path) -> None:
    """OPT's feed-forward layers are given [T, N]."""
    base = save_chat_checkpoint(
        tmp_path / "opt", config=OPTConfig, word_embed_proj_dim=32, ffn_dim=64
    )
    adapter = tmp_path / "a"
    adapter.mkdir()
    key = "base_model.model.model.decoder.layers.{}.fc1.lora_{}.weight"
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(2):
        tensors[key.format(layer, "A")] = torch.randn(4, 32, generator=generator)
        tensors[key.format(layer, "B")] = torch.randn(64, 4, generator=generator)
    save_file(tensors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "lora_alpha": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    spec = ModelSpec(name="m", task="chat", source=str(base), adapters={"a": str(adapter)})
    engine = BatchingEngine(spec)
    engine.start()
    found = await asyncio.gather(
        *(answer(engine, f"{at}", PROMPT[:9], name) for at, name in enumerate(["a", "", "a"]))
    )
    await engine.drain()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    own = greedy(merged(base, adapter, 1.0), PROMPT[:9], 16)
    assert [tokens for tokens, _ in found] == [own, greedy(plain, PROMPT[:9], 16), own]
    assert own != greedy(plain, PROMPT[:9], 16)


async def test_what_was_computed_for_one_adapter_is_not_taken_for_another(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Their keys and values are others."""
    adapter = save_adapter(tmp_path / "a", checkpoint, ALL, 3)
    spec = ModelSpec(name="m", task="chat", source=str(checkpoint), adapters={"a": str(adapter)})
    engine = BatchingEngine(spec)
    engine.start()
    cached = [
        (await answer(engine, f"{i}", PROMPT, name))[1] for i, name in enumerate(["", "a", ""])
    ]
    await engine.drain()
    assert cached == [0, 0, len(PROMPT) - 1]


def _refused(checkpoint: Path, adapter: Path, message: str) -> None:
    spec = ModelSpec(name="m", task="chat", source=str(checkpoint), adapters={"a": str(adapter)})
    with pytest.raises(CheckpointError, match=message):
        BatchingEngine(spec).start()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "uses use_dora"),
        ({"bias": "all"}, "uses bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"peft_type": "IA3"}, "no LoRA adapter in peft's layout"),
    ],
)
def test_an_adapter_that_does_more_is_refused(
    checkpoint: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    """Instead of being applied in part."""
    _refused(checkpoint, save_adapter(tmp_path / "a", checkpoint, ATTENTION, 1, **config), message)


@pytest.mark.fault(24)
def test_pickled_adapters_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """They can run code."""
    adapter = save_adapter(tmp_path / "a", checkpoint, ATTENTION, 1)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    _refused(checkpoint, adapter, r"adapter_model\.safetensors")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", (4, 32), "no linear"),
        ("base_model.model.lm_head.lora_A.weight", (4, 32), "adapts lm_head, no linear layer"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", (4, 31), "another size"),
        ("base_model.model.model.layers.0.self_attn.q_proj.weight", (32, 32), "no part of a LoRA"),
    ],
)
def test_an_adapter_for_another_model_is_refused(
    checkpoint: Path, tmp_path: Path, key: str, shape: tuple[int, int], message: str
) -> None:
    """With the layer that does not fit."""
    adapter = save_adapter(tmp_path / "a", checkpoint, ATTENTION, 1)
    path = adapter / "adapter_model.safetensors"
    other = {key: torch.zeros(shape)}
    if "lora_A" in key:
        other[key.replace("lora_A", "lora_B")] = torch.zeros(64, 4)
    save_file(other, path)
    _refused(checkpoint, adapter, message)


def test_an_adapter_without_its_other_half_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """A file cut short, say."""
    adapter = save_adapter(tmp_path / "a", checkpoint, ATTENTION, 1)
    path = adapter / "adapter_model.safetensors"
    save_file({key: t for key, t in load_file(path).items() if "lora_A" in key}, path)
    _refused(checkpoint, adapter, "needs lora_A")
    path.write_bytes(b"no such file")
    _refused(checkpoint, adapter, "cannot be read")


def test_layers_that_are_no_linear_ones_are_refused(tmp_path: Path) -> None:
    """GPT-2 keeps its own kind of layer."""
    base = save_chat_checkpoint(tmp_path / "gpt2", config=GPT2Config)
    adapter = tmp_path / "a"
    adapter.mkdir()
    key = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
    save_file(
        {key.format("A"): torch.zeros(4, 32), key.format("B"): torch.zeros(96, 4)},
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    _refused(base, adapter, "no linear layer of this model")
