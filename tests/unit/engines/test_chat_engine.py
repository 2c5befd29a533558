from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.protocol import GenerationRequest, SamplingParams, StepOutput
from omai_ray.engines.chat.scheduler import Piece
from omai_ray.engines.chat.transformers_engine import TransformersEngine
from omai_ray.errors import (
    CheckpointError,
    ConfigError,
    ContextTooLong,
    InvalidRequest,
    Overloaded,
    ServerError,
)
from tests.checkpoints import save_chat_checkpoint

PROMPTS = [[5, 9, 40], [7], [11, 12, 13, 14, 15, 16, 17], [100, 101]]
GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random chat model."""
    return save_chat_checkpoint(tmp_path_factory.mktemp("chat"))


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[TransformersEngine]:
    """Return a running engine over it."""
    engine = TransformersEngine(ModelSpec(name="m", task="chat", source=str(checkpoint)))
    engine.start()
    yield engine
    await engine.drain()


async def collect(engine: TransformersEngine, request: GenerationRequest) -> list[StepOutput]:
    """Return every output of a request."""
    return [output async for output in engine.generate(request)]


def tokens(outputs: list[StepOutput]) -> list[int]:
    """Return the token ids of outputs."""
    return [token for output in outputs for token in output.token_ids]


async def test_greedy_tokens_equal_generate_alone_and_in_any_batch(
    engine: TransformersEngine, checkpoint: Path
) -> None:
    """Padding and batch mates do not change a greedy answer in fp32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    requests = [GenerationRequest(f"r{i}", p, 24, GREEDY) for i, p in enumerate(PROMPTS)]
    together = await asyncio.gather(*(collect(engine, request) for request in requests))
    for prompt, outputs in zip(PROMPTS, together, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
        assert tokens(outputs) == expected[0, len(prompt) :].tolist()


async def test_the_last_output_alone_says_how_the_sequence_ended(
    engine: TransformersEngine,
) -> None:
    """Only the last output has a finish reason; a token limit is `length`."""
    outputs = await collect(engine, GenerationRequest("a", [5, 6], 5, GREEDY))
    finishes = [output.finish for output in outputs]
    assert len(tokens(outputs)) <= 5
    assert finishes[:-1] == [None] * (len(finishes) - 1)
    assert finishes[-1] in ("length", "stop")


async def test_a_seed_fixes_the_answer_whatever_else_is_in_the_batch(
    engine: TransformersEngine,
) -> None:
    """A sampled answer depends on its seed, not on its batch mates."""
    sampling = SamplingParams(temperature=1.0, top_p=0.9, seed=7)
    alone = await collect(engine, GenerationRequest("a", [5, 6, 7], 16, sampling))
    mates = [
        collect(engine, GenerationRequest(f"m{i}", p, 16, SamplingParams(seed=i)))
        for i, p in enumerate(PROMPTS)
    ]
    mixed, *_ = await asyncio.gather(
        collect(engine, GenerationRequest("b", [5, 6, 7], 16, sampling)), *mates
    )
    assert tokens(alone) == tokens(mixed)


async def test_logit_bias_can_force_and_forbid_a_token(engine: TransformersEngine) -> None:
    """A bias of 100 makes a token certain; -100 makes it impossible."""
    forced = SamplingParams(temperature=0, logit_bias={42: 100.0 * 10})
    assert set(tokens(await collect(engine, GenerationRequest("f", [5], 4, forced)))) == {42}
    free = tokens(await collect(engine, GenerationRequest("g", [5], 1, GREEDY)))
    forbidden = SamplingParams(temperature=0, logit_bias={free[0]: -1000.0})
    assert tokens(await collect(engine, GenerationRequest("h", [5], 1, forbidden))) != free


async def test_frequency_penalty_breaks_repetition(engine: TransformersEngine) -> None:
    """A token that a bias makes certain is given up once its penalties outweigh the bias."""
    biased = SamplingParams(temperature=0, logit_bias={42: 300.0})
    penalised = SamplingParams(temperature=0, logit_bias={42: 300.0}, frequency_penalty=200.0)
    assert tokens(await collect(engine, GenerationRequest("a", [5], 6, biased))) == [42] * 6
    assert tokens(await collect(engine, GenerationRequest("b", [5], 6, penalised))) != [42] * 6


async def test_logprobs_are_of_the_unmodified_distribution(engine: TransformersEngine) -> None:
    """Alternatives come likeliest first, and the greedy token is the first of them."""
    sampling = SamplingParams(temperature=0, logprobs=3)
    outputs = await collect(engine, GenerationRequest("a", [5, 6], 4, sampling))
    for output in outputs:
        assert output.logprobs is not None
        (entry,) = output.logprobs
        values = [value for _, value in entry.top]
        assert values == sorted(values, reverse=True)
        token, logprob = entry.top[0]
        assert token == output.token_ids[0]
        assert logprob == pytest.approx(entry.logprob)


async def test_leaving_the_iterator_frees_the_engine(engine: TransformersEngine) -> None:
    """A caller that goes away does not keep its sequence running."""
    stream = engine.generate(GenerationRequest("a", [5], 250, SamplingParams(seed=1)))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert len(tokens(await collect(engine, GenerationRequest("b", [6], 3, GREEDY)))) >= 1
    assert engine.stats().waiting == 0


async def test_abort_ends_the_sequence_with_abort(engine: TransformersEngine) -> None:
    """An aborted request still gets a final output."""
    finishes = []
    async for output in engine.generate(
        GenerationRequest("a", [5], 250, SamplingParams(logit_bias={42: 1000.0}))
    ):
        engine.abort("a")
        finishes.append(output.finish)
    assert finishes[-1] == "abort"


async def test_a_full_queue_refuses_by_name(checkpoint: Path) -> None:
    """One request more than may wait is refused with Overloaded, and the others are answered."""
    spec = ModelSpec(name="m", task="chat", source=str(checkpoint), max_queued_requests=1)
    engine = TransformersEngine(spec)
    engine.vocab_size = 256  # the thread is not started yet, so that what is queued stays queued
    first = asyncio.create_task(collect(engine, GenerationRequest("a", [5], 2, GREEDY)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 requests waiting"):
        await collect(engine, GenerationRequest("b", [5], 2, GREEDY))
    engine.start()
    assert len(tokens(await first)) >= 1
    await engine.drain()


async def test_a_failing_step_fails_only_whom_it_concerns(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sequences of a step that fails, those that run alone go on, token for token."""
    expected = tokens(await collect(engine, GenerationRequest("a", [5, 6], 12, GREEDY)))
    run = engine._runner.run

    def fragile(pieces: Sequence[Piece]) -> torch.Tensor:
        if any(piece.sequence.request.request_id == "poison" for piece in pieces):
            raise ValueError("poison")
        return run(pieces)

    monkeypatch.setattr(engine._runner, "run", fragile)
    good, bad = await asyncio.gather(
        collect(engine, GenerationRequest("b", [5, 6], 12, GREEDY)),
        collect(engine, GenerationRequest("poison", [7], 12, GREEDY)),
    )
    assert tokens(good) == expected
    assert bad[-1] == StepOutput([], "error", error="ValueError")
    engine.check_health()


async def test_an_engine_that_ends_tells_those_who_wait(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of the scheduler itself leaves nobody hanging; the health check finds it."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(engine._scheduler, "plan", lambda: 1 / 0)
    outputs = await collect(engine, GenerationRequest("a", [5], 2, GREEDY))
    assert outputs[-1].finish == "error"
    engine._thread.join(10)  # type: ignore[union-attr]
    with pytest.raises(ServerError, match="not running"):
        engine.check_health()
    with pytest.raises(Overloaded):
        await collect(engine, GenerationRequest("b", [5], 2, GREEDY))


async def test_what_is_overdue_ends(engine: TransformersEngine) -> None:
    """Running or still waiting, a request is not continued after its deadline."""
    endless = SamplingParams(temperature=0, logit_bias={42: 1000.0})
    late = GenerationRequest("a", [5], 250, endless, deadline=time.monotonic())
    outputs = await collect(engine, late)
    assert outputs == [StepOutput([], "error", error="deadline exceeded")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": []}, "no token"),
        ({"prompt_ids": [5, -1]}, "outside the vocabulary"),
        ({"prompt_ids": [10**6]}, "outside the vocabulary"),
        ({"prompt_ids": [5] * 256}, "256 tokens; the model's context of 256"),
        ({"max_new_tokens": 0}, "max_tokens is 0"),
        ({"sampling": SamplingParams(temperature=math.nan)}, "temperature is nan"),
        ({"sampling": SamplingParams(top_p=1.5)}, "top_p is 1.5"),
        ({"sampling": SamplingParams(logit_bias={10**6: 1.0})}, "logit_bias"),
        ({"sampling": SamplingParams(logit_bias={5: math.inf})}, "logit_bias"),
        ({"sampling": SamplingParams(logprobs=-1)}, "logprobs is -1"),
    ],
)
async def test_what_cannot_run_is_refused_by_name(
    engine: TransformersEngine, changes: dict[str, Any], message: str
) -> None:
    """And the engine is unharmed."""
    request = dataclasses.replace(GenerationRequest("a", [5], 4, GREEDY), **changes)
    with pytest.raises((InvalidRequest, ContextTooLong), match=message):
        await collect(engine, request)
    assert len(tokens(await collect(engine, GenerationRequest("b", [5], 4, GREEDY)))) >= 1


async def test_an_answer_ends_where_the_context_does(engine: TransformersEngine) -> None:
    """With finish `length`, though more was asked for."""
    endless = SamplingParams(temperature=0, logit_bias={42: 1000.0})
    outputs = await collect(engine, GenerationRequest("a", [5] * 250, 100, endless))
    assert len(tokens(outputs)) == 6
    assert outputs[-1].finish == "length"


async def test_a_prompt_seen_before_is_reported_as_cached(engine: TransformersEngine) -> None:
    """Within an account; the answer is the same."""
    prompt = list(range(5, 100))
    answers = [
        await collect(engine, GenerationRequest(f"{at}", prompt, 8, GREEDY, account=account))
        for at, account in enumerate(["a", "a", "b"])
    ]
    assert [answer[0].cached_tokens for answer in answers] == [0, 94, 0]
    assert tokens(answers[0]) == tokens(answers[1]) == tokens(answers[2])


async def test_little_memory_costs_time_and_nothing_else(checkpoint: Path) -> None:
    """Where keys and values of one sequence only have room, all answers are the same."""
    roomy = ModelSpec(name="m", task="chat", source=str(checkpoint))
    tight = roomy.model_copy(update={"kv_cache_gib": 260 * 2 * 2 * 16 * 4 / 2**30})
    requests = [GenerationRequest(f"{i}", [5 + i] * 40, 150, GREEDY) for i in range(6)]
    answers = []
    for spec in (roomy, tight):
        engine = TransformersEngine(spec)
        engine.start()
        found = await asyncio.gather(*(collect(engine, request) for request in requests))
        answers.append([tokens(outputs) for outputs in found])
        preemptions = engine.stats().preemptions
        await engine.drain()
    assert answers[0] == answers[1]
    assert preemptions > 0


def test_too_little_memory_for_one_sequence_ends_the_load(checkpoint: Path) -> None:
    """With what is needed and what can be done."""
    spec = ModelSpec(name="m", task="chat", source=str(checkpoint), kv_cache_gib=1e-6)
    with pytest.raises(ConfigError, match=r"256 tokens need .* lower `context` or raise"):
        TransformersEngine(spec).start()


ARCHITECTURES: list[tuple[type[PreTrainedConfig], dict[str, Any]]] = [
    (LlamaConfig, {"num_key_value_heads": 2}),
    (Qwen2Config, {"num_key_value_heads": 2}),
    (Qwen3Config, {"num_key_value_heads": 1, "head_dim": 16}),
    (MistralConfig, {"num_key_value_heads": 2, "sliding_window": 9}),
    (GemmaConfig, {"num_key_value_heads": 1, "head_dim": 8}),
    (
        Gemma3TextConfig,
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8},
    ),
    (PhiConfig, {"partial_rotary_factor": 0.5}),
    (Phi3Config, {"num_key_value_heads": 2}),
    (GPT2Config, {}),
    (GPTNeoXConfig, {}),
    (Olmo2Config, {}),
    (GraniteConfig, {"num_key_value_heads": 2}),
    (OPTConfig, {"word_embed_proj_dim": 32, "ffn_dim": 64}),
]


@pytest.mark.parametrize(("config", "options"), ARCHITECTURES)
async def test_greedy_tokens_equal_generate_for_every_architecture(
    tmp_path: Path, config: type[PreTrainedConfig], options: dict[str, Any]
) -> None:
    """In float32, alone and in a mix that is chunked, joined, cached and left at will."""
    save_chat_checkpoint(tmp_path, config=config, **options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    rng = random.Random(0)
    prompts = [[rng.randrange(250) for _ in range(n)] for n in (1, 3, 12, 31, 70)]
    prompts += [[*prompts[4][:50], 9, 8]]
    engine = TransformersEngine(ModelSpec(name="m", task="chat", source=str(tmp_path)))
    engine.start()
    alone = [
        tokens(await collect(engine, GenerationRequest(f"a{i}", p, 20, GREEDY)))
        for i, p in enumerate(prompts)
    ]
    together = await asyncio.gather(
        *(collect(engine, GenerationRequest(f"b{i}", p, 20, GREEDY)) for i, p in enumerate(prompts))
    )
    await engine.drain()
    for prompt, first, second in zip(prompts, alone, together, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )
        assert first == expected[0, len(prompt) :].tolist()
        assert tokens(second) == first


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (Gemma2Config, {"num_key_value_heads": 2, "head_dim": 8}),
        (MambaConfig, {"state_size": 4}),
    ],
)
def test_an_architecture_that_cannot_be_served_is_refused_at_load(
    tmp_path: Path, config: type[PreTrainedConfig], options: dict[str, Any]
) -> None:
    """Soft-capped scores, a recurrent state."""
    save_chat_checkpoint(tmp_path, config=config, **options)
    engine = TransformersEngine(ModelSpec(name="m", task="chat", source=str(tmp_path)))
    with pytest.raises(CheckpointError, match="cannot be served by the `transformers` engine"):
        engine.start()


def test_pickled_weights_are_refused_at_load(checkpoint: Path, tmp_path: Path) -> None:
    """A directory without safetensors is refused, with what was found and what to do."""
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no \.safetensors.*pytorch_model\.bin"):
        TransformersEngine(ModelSpec(name="m", task="chat", source=str(tmp_path)))
