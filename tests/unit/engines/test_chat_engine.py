from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
import threading
import time
from collections.abc import AsyncIterator
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
from omai_ray.engines.chat.batching_engine import BatchingEngine
from omai_ray.engines.chat.protocol import (
    EngineStats,
    GenerationRequest,
    SamplingParams,
    StepOutput,
)
from omai_ray.engines.chat.scheduler import Piece
from omai_ray.errors import (
    CheckpointError,
    ConfigError,
    Overloaded,
    ServerError,
)
from tests.chat import collect, greedy, tokens
from tests.checkpoints import save_chat_checkpoint
from tests.programs import niceness

PROMPTS = [[5, 9, 40], [7], [11, 12, 13, 14, 15, 16, 17], [100, 101]]
GREEDY = SamplingParams(temperature=0)


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[BatchingEngine]:
    """Return a running engine over it."""
    engine = BatchingEngine(ModelSpec(name="m", task="chat", source=str(checkpoint)))
    engine.start()
    yield engine
    await engine.drain()


async def test_a_full_queue_refuses_by_name(checkpoint: Path) -> None:
    """One request more than may wait is refused with Overloaded, and the others are answered."""
    spec = ModelSpec(name="m", task="chat", source=str(checkpoint), max_queued_requests=1)
    engine = BatchingEngine(spec)
    engine.vocab_size = 256  # the thread is not started yet, so that what is queued stays queued
    first = asyncio.create_task(collect(engine, GenerationRequest("a", [5], 2, GREEDY)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 requests waiting"):
        await collect(engine, GenerationRequest("b", [5], 2, GREEDY))
    engine.start()
    assert len(tokens(await first)) >= 1
    await engine.drain()


def idle(engine: BatchingEngine) -> EngineStats:
    """Return the stats once nothing runs: the thread takes note after the last output."""
    while (stats := engine.stats()).running:
        time.sleep(0.001)
    return stats


async def test_stats_say_what_was_begun_cached_and_held(engine: BatchingEngine) -> None:
    """Prompts count when they begin, what was kept of one as cached; nothing is held when idle."""
    prompt = list(range(5, 45))
    outputs = await collect(engine, GenerationRequest("a", prompt, 2, GREEDY))
    again = await collect(engine, GenerationRequest("b", prompt, 2, GREEDY))
    assert outputs[0].queued_s is not None
    assert outputs[0].queued_s >= 0
    assert all(output.queued_s is None for output in outputs[1:])
    stats = await asyncio.to_thread(idle, engine)
    assert stats.prompt_tokens == 80
    assert stats.cached_tokens == again[0].cached_tokens > 0
    assert (stats.waiting, stats.kv_use) == (0, 0.0)


async def test_a_failing_step_fails_only_whom_it_concerns(
    engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sequences of a step that fails, those that run alone go on, token for token."""
    expected = tokens(await collect(engine, GenerationRequest("a", [5, 6], 12, GREEDY)))
    run = engine._runner.run

    def fragile(pieces: list[Piece]) -> torch.Tensor:
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


async def test_a_step_of_a_batch_is_left_undone_when_somebody_online_comes(
    engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two layers, and the online request is next; the batch goes on, token for token."""
    batch = GenerationRequest("a", [5, 6], 12, GREEDY, account="a", priority="batch")
    expected = tokens(await collect(engine, batch))
    reached, may_go_on = threading.Event(), threading.Event()
    begun: list[str] = []
    ended: list[str] = []
    run = engine._runner.run

    def held() -> None:
        reached.set()
        may_go_on.wait()
        engine._give_way()

    def noted(pieces: list[Piece]) -> torch.Tensor:
        name = pieces[0].sequence.request.request_id
        begun.append(name)
        logits = run(pieces)
        ended.append(name)
        return logits

    monkeypatch.setattr(engine._runner, "between_layers", held)
    monkeypatch.setattr(engine._runner, "run", noted)
    again = asyncio.create_task(collect(engine, dataclasses.replace(batch, request_id="b")))
    await asyncio.to_thread(reached.wait)
    online = asyncio.create_task(collect(engine, GenerationRequest("c", [7], 3, GREEDY)))
    await asyncio.sleep(0)
    may_go_on.set()
    assert len(tokens(await online)) >= 1
    assert tokens(await again) == expected
    assert (["b", "c"], "c") == (begun[:2], ended[0])
    assert len(begun) == len(ended) + 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only processes have a priority")
async def test_computing_gives_way_to_those_who_bring_requests(
    engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's thread has a lower priority than the one that asks."""
    seen: set[int] = set()
    monkeypatch.setattr(engine._runner, "between_layers", lambda: seen.add(niceness()))
    await collect(engine, GenerationRequest("a", [7], 3, GREEDY))
    assert {min(19, niceness() + 1)} == seen


async def test_an_engine_that_ends_tells_those_who_wait(
    engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch
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


async def test_a_step_that_never_ends_is_found_and_its_requests_end(checkpoint: Path) -> None:
    """A slow one is not: only longer than step_timeout_s is wedged. Nobody is taken any more."""
    spec = ModelSpec(name="m", task="chat", source=str(checkpoint), step_timeout_s=1e-9)
    engine = BatchingEngine(spec)
    engine.start()
    entered, released = threading.Event(), threading.Event()
    run = engine._runner.run

    def held(pieces: list[Piece]) -> torch.Tensor:
        entered.set()
        released.wait()
        return run(pieces)

    engine._runner.run = held  # type: ignore[method-assign]
    engine.check_health()  # idle
    waiting = asyncio.create_task(collect(engine, GenerationRequest("a", [5], 2, GREEDY)))
    await asyncio.to_thread(entered.wait)
    with pytest.raises(ServerError, match="not ended a step"):
        engine.check_health()
    assert (await waiting)[-1].finish == "error"
    with pytest.raises(Overloaded):
        await collect(engine, GenerationRequest("b", [5], 2, GREEDY))
    released.set()
    await engine.drain()


async def test_a_prompt_of_several_steps_is_continued_as_by_generate(tmp_path: Path) -> None:
    """Alone, so that its first step draws no token for anybody."""
    checkpoint = save_chat_checkpoint(tmp_path, context=1400)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    prompt = [5 + place % 90 for place in range(1300)]
    engine = BatchingEngine(ModelSpec(name="m", task="chat", source=str(checkpoint)))
    engine.start()
    outputs = await collect(engine, GenerationRequest("a", prompt, 12, GREEDY))
    await engine.drain()
    assert tokens(outputs) == greedy(model, prompt, 12)


async def test_little_memory_costs_time_and_nothing_else(checkpoint: Path) -> None:
    """Where keys and values of one sequence only have room, all answers are the same."""
    roomy = ModelSpec(name="m", task="chat", source=str(checkpoint))
    tight = roomy.model_copy(update={"kv_cache_gib": 260 * 2 * 2 * 16 * 4 / 2**30})
    requests = [GenerationRequest(f"{i}", [5 + i] * 40, 150, GREEDY) for i in range(6)]
    answers = []
    for spec in (roomy, tight):
        engine = BatchingEngine(spec)
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
        BatchingEngine(spec).start()


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
    await expect_greedy_tokens(tmp_path)


async def test_greedy_tokens_equal_generate_without_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that cannot build them."""
    for user in ("chat.transformers_runner", "prepare"):
        monkeypatch.setattr(f"omai_ray.engines.{user}.kernels", lambda dtype, device_type: None)
    save_chat_checkpoint(tmp_path, config=MistralConfig, num_key_value_heads=2, sliding_window=9)
    await expect_greedy_tokens(tmp_path)


async def expect_greedy_tokens(directory: Path) -> None:
    """Compare answers with those of `generate`, alone and together."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    rng = random.Random(0)
    prompts = [[rng.randrange(250) for _ in range(n)] for n in (1, 3, 12, 31, 70)]
    prompts += [[*prompts[4][:50], 9, 8]]
    engine = BatchingEngine(ModelSpec(name="m", task="chat", source=str(directory)))
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
        assert first == greedy(model, prompt, 20)
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
    engine = BatchingEngine(ModelSpec(name="m", task="chat", source=str(tmp_path)))
    with pytest.raises(CheckpointError, match="cannot be served by the `transformers` engine"):
        engine.start()


@pytest.mark.fault(24)
def test_pickled_weights_are_refused_at_load(checkpoint: Path, tmp_path: Path) -> None:
    """A directory without safetensors is refused, with what was found and what to do."""
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no \.safetensors.*pytorch_model\.bin"):
        BatchingEngine(ModelSpec(name="m", task="chat", source=str(tmp_path)))
