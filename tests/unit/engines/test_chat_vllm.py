"""What is the vLLM engine's own, with a stand-in for vLLM."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.protocol import GenerationRequest, Grammar, SamplingParams, StepOutput
from omai_ray.engines.chat.vllm_engine import VllmEngine
from omai_ray.errors import ConfigError, InvalidRequest, Overloaded, ServerError
from tests import vllm_stand_in
from tests.chat import collect

ENDLESS = SamplingParams(temperature=0, logit_bias={42: 1000.0})


def spec(checkpoint: Path, **fields: Any) -> ModelSpec:
    """Return an entry of the catalog."""
    given = {"name": "m", "task": "chat", "source": str(checkpoint), "dtype": "float32"}
    return ModelSpec(**{**given, "engine": "vllm", **fields})


@pytest.fixture
async def engine(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VllmEngine]:
    """Return a running engine that takes one request and lets one wait."""
    vllm_stand_in.install(monkeypatch)
    engine = VllmEngine(spec(checkpoint, max_running_requests=1, max_queued_requests=1))
    engine.start()
    yield engine
    await engine.drain()


def test_without_vllm_the_load_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"omai-ray\[vllm\].*runtime_env"):
        VllmEngine(spec(checkpoint)).start()


def test_further_arguments_reach_vllm(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that other settings decide, and those that vLLM does not know, are refused by name."""
    vllm_stand_in.install(monkeypatch)
    found: list[Any] = []
    make = vllm_stand_in.AsyncLLM.from_engine_args

    def noted(arguments: Any) -> Any:
        found.append(arguments)
        return make(arguments)

    monkeypatch.setattr(vllm_stand_in.AsyncLLM, "from_engine_args", noted)
    VllmEngine(spec(checkpoint, engine_args={"gpu_memory_utilization": 0.5})).start()
    (arguments,) = found
    assert arguments.gpu_memory_utilization == 0.5
    assert arguments.max_model_len == 256
    assert not arguments.enable_log_requests
    with pytest.raises(ConfigError, match="engine_args sets max_model_len"):
        VllmEngine(spec(checkpoint, engine_args={"max_model_len": 9})).start()
    with pytest.raises(ConfigError, match=r"engine_args: .*gpu_memory"):
        VllmEngine(spec(checkpoint, engine_args={"gpu_memory": 0.5})).start()


def test_vllm_keeps_to_its_part_of_a_gpu(checkpoint: Path) -> None:
    """Nine tenths of it, as of a whole one; engine_args cannot say otherwise."""
    assert VllmEngine(spec(checkpoint, num_gpus=0.5))._arguments()["gpu_memory_utilization"] == 0.45
    assert "gpu_memory_utilization" not in VllmEngine(spec(checkpoint, num_gpus=2))._arguments()
    engine_args = {"gpu_memory_utilization": 0.9}
    with pytest.raises(ConfigError, match="engine_args sets gpu_memory_utilization"):
        VllmEngine(spec(checkpoint, num_gpus=0.5, engine_args=engine_args))._arguments()


def test_arguments_for_vllm_are_for_its_engine_only(checkpoint: Path) -> None:
    """Elsewhere they would be ignored."""
    with pytest.raises(ValidationError, match="engine_args is for engine vllm"):
        spec(checkpoint, engine="transformers", engine_args={"seed": 1})
    with pytest.raises(ValidationError, match="engine vllm is for chat models"):
        spec(checkpoint, task="embedding")


async def test_one_more_than_may_wait_is_refused(engine: VllmEngine) -> None:
    """And those that run or wait are answered."""
    first = asyncio.create_task(collect(engine, GenerationRequest("a", [5], 30, ENDLESS)))
    second = asyncio.create_task(collect(engine, GenerationRequest("b", [5], 30, ENDLESS)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 requests waiting"):
        await collect(engine, GenerationRequest("c", [5], 3, ENDLESS))
    assert [len(outputs) for outputs in await asyncio.gather(first, second)] == [30, 30]
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)


async def test_a_batch_comes_after_others_and_has_a_bound_of_its_own(engine: VllmEngine) -> None:
    """In vLLM the lesser number comes first."""
    batch = [GenerationRequest(name, [5], 30, ENDLESS, priority="batch") for name in "abc"]
    first, second = (asyncio.create_task(collect(engine, request)) for request in batch[:2])
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await collect(engine, batch[2])
    assert 3 == len(await collect(engine, GenerationRequest("online", [5], 3, ENDLESS)))
    await asyncio.gather(first, second)
    assert {"a": 1, "b": 1, "online": 0} == engine._llm.priorities
    assert 3 == len(await collect(engine, dataclasses.replace(batch[2], max_new_tokens=3)))


async def test_a_draining_engine_finishes_and_takes_no_more(engine: VllmEngine) -> None:
    """Then its health check fails."""
    first = asyncio.create_task(collect(engine, GenerationRequest("a", [5], 20, ENDLESS)))
    await asyncio.sleep(0)
    engine.check_health()
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="shutting down"):
        await collect(engine, GenerationRequest("b", [5], 2, ENDLESS))
    assert len(await first) == 20
    await draining
    with pytest.raises(ServerError):
        engine.check_health()


async def test_vllm_that_gives_nobody_anything_is_found(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not while it has nothing to do."""
    vllm_stand_in.install(monkeypatch)
    engine = VllmEngine(spec(checkpoint, step_timeout_s=1e-9))
    engine.start()
    engine.check_health()
    request = asyncio.create_task(collect(engine, GenerationRequest("a", [5], 2, ENDLESS)))
    await asyncio.sleep(0)
    with pytest.raises(ServerError, match="not ended a step"):
        engine.check_health()
    await request
    engine.check_health()
    await engine.drain()


async def test_a_deadline_ends_what_runs(engine: VllmEngine) -> None:
    """With what came before it; the sequence is gone from vLLM too."""
    request = GenerationRequest("a", [5], 250, ENDLESS, deadline=time.monotonic() + 0.1)
    outputs = []
    async for output in engine.generate(request):
        outputs.append(output)
        await asyncio.sleep(0.02)  # the caller's own time is not interrupted
    assert outputs[0].token_ids == [42]
    assert outputs[-1] == StepOutput([], "error", error="deadline exceeded")
    assert engine._llm._sequences == {}


async def test_what_vllm_refuses_is_an_invalid_request(engine: VllmEngine) -> None:
    """Named after the parameter that asked for it."""
    grammar = Grammar("regex", "[", "response_format")
    request = dataclasses.replace(GenerationRequest("a", [5], 4, ENDLESS), grammar=grammar)
    with pytest.raises(InvalidRequest) as caught:
        await collect(engine, request)
    assert caught.value.param == "response_format"


async def test_parameters_that_vllm_refuses_leave_nothing_behind(engine: VllmEngine) -> None:
    """Neither a request that waits for ever, nor an engine that cannot drain."""
    hot = SamplingParams(temperature=50)
    with pytest.raises(InvalidRequest, match="temperature"):
        await collect(engine, GenerationRequest("a", [5], 4, hot))
    assert engine.stats().waiting == 0


async def test_an_abort_is_one_with_log_probabilities_too(engine: VllmEngine) -> None:
    """Its last output has no token to report on."""
    reported = dataclasses.replace(ENDLESS, logprobs=2)
    finishes = []
    async for output in engine.generate(GenerationRequest("a", [5], 250, reported)):
        engine.abort("a")
        finishes.append(output.finish)
    assert finishes[-1] == "abort"


async def test_a_failure_within_vllm_ends_its_request_only(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kind of the failure, without its text."""

    def broken(sequence: Any) -> Any:
        raise RuntimeError(f"prompt {sequence.prompt}")

    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "_logits", broken)
        outputs = await collect(engine, GenerationRequest("a", [5], 4, ENDLESS))
    assert outputs == [StepOutput([], "error", error="EngineGenerateError")]
    assert len(await collect(engine, GenerationRequest("b", [5], 4, ENDLESS))) == 4
