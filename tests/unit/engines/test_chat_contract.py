"""What every chat engine has to do, run over all of them."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from omai_ray.catalog import Engine, ModelSpec
from omai_ray.engines.chat.create import create_engine
from omai_ray.engines.chat.protocol import ChatEngine, GenerationRequest, SamplingParams, StepOutput
from omai_ray.errors import ContextTooLong, InvalidRequest
from tests import vllm_stand_in
from tests.chat import collect, greedy, tokens
from tests.programs import require_module

PROMPTS = [[5, 9, 40], [7], [11, 12, 13, 14, 15, 16, 17], [100, 101]]
GREEDY = SamplingParams(temperature=0)
ENGINES: list[Engine] = ["transformers", "llama-cpp", "vllm"]


@pytest.fixture(params=ENGINES)
async def engine(
    request: pytest.FixtureRequest, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ChatEngine]:
    """Return a running engine over it."""
    name = request.param
    if name == "llama-cpp":
        require_module("llama_cpp", extra="llama-cpp")
        from benchmarks.gguf_llama import write_gguf

        if not (checkpoint / "model.gguf").exists():
            write_gguf(checkpoint)
    if name == "vllm":
        vllm_stand_in.install(monkeypatch)
    source = str(checkpoint)
    engine = create_engine(
        ModelSpec(name="m", task="chat", source=source, engine=name, dtype="float32")
    )
    engine.start()
    yield engine
    await engine.drain()


async def test_greedy_tokens_equal_generate_alone_and_in_any_batch(
    engine: ChatEngine, checkpoint: Path
) -> None:
    """Padding and batch mates do not change a greedy answer in fp32."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    requests = [GenerationRequest(f"r{i}", p, 24, GREEDY) for i, p in enumerate(PROMPTS)]
    together = await asyncio.gather(*(collect(engine, request) for request in requests))
    for prompt, outputs in zip(PROMPTS, together, strict=True):
        assert tokens(outputs) == greedy(model, prompt, 24)


async def test_the_last_output_alone_says_how_the_sequence_ended(
    engine: ChatEngine,
) -> None:
    """Only the last output has a finish reason; a token limit is `length`."""
    outputs = await collect(engine, GenerationRequest("a", [5, 6], 5, GREEDY))
    finishes = [output.finish for output in outputs]
    assert len(tokens(outputs)) <= 5
    assert finishes[:-1] == [None] * (len(finishes) - 1)
    assert finishes[-1] in ("length", "stop")


async def test_a_seed_fixes_the_answer_whatever_else_is_in_the_batch(
    engine: ChatEngine,
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


async def test_logit_bias_can_force_and_forbid_a_token(engine: ChatEngine) -> None:
    """A bias of 100 makes a token certain; -100 makes it impossible."""
    forced = SamplingParams(temperature=0, logit_bias={42: 100.0 * 10})
    assert set(tokens(await collect(engine, GenerationRequest("f", [5], 4, forced)))) == {42}
    free = tokens(await collect(engine, GenerationRequest("g", [5], 1, GREEDY)))
    forbidden = SamplingParams(temperature=0, logit_bias={free[0]: -1000.0})
    assert tokens(await collect(engine, GenerationRequest("h", [5], 1, forbidden))) != free


async def test_frequency_penalty_breaks_repetition(engine: ChatEngine) -> None:
    """A token that a bias makes certain is given up once its penalties outweigh the bias."""
    biased = SamplingParams(temperature=0, logit_bias={42: 300.0})
    penalised = SamplingParams(temperature=0, logit_bias={42: 300.0}, frequency_penalty=200.0)
    assert tokens(await collect(engine, GenerationRequest("a", [5], 6, biased))) == [42] * 6
    assert tokens(await collect(engine, GenerationRequest("b", [5], 6, penalised))) != [42] * 6


async def test_logprobs_are_of_the_unmodified_distribution(engine: ChatEngine) -> None:
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


async def test_leaving_the_iterator_frees_the_engine(engine: ChatEngine) -> None:
    """A caller that goes away does not keep its sequence running."""
    stream = engine.generate(GenerationRequest("a", [5], 250, SamplingParams(seed=1)))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert len(tokens(await collect(engine, GenerationRequest("b", [6], 3, GREEDY)))) >= 1
    assert engine.stats().waiting == 0


async def test_abort_ends_the_sequence_with_abort(engine: ChatEngine) -> None:
    """An aborted request still gets a final output."""
    finishes = []
    async for output in engine.generate(
        GenerationRequest("a", [5], 250, SamplingParams(logit_bias={42: 1000.0}))
    ):
        engine.abort("a")
        finishes.append(output.finish)
    assert finishes[-1] == "abort"


async def test_what_is_overdue_ends(engine: ChatEngine) -> None:
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
    engine: ChatEngine, changes: dict[str, Any], message: str
) -> None:
    """And the engine is unharmed."""
    request = dataclasses.replace(GenerationRequest("a", [5], 4, GREEDY), **changes)
    with pytest.raises((InvalidRequest, ContextTooLong), match=message):
        await collect(engine, request)
    assert len(tokens(await collect(engine, GenerationRequest("b", [5], 4, GREEDY)))) >= 1


async def test_an_answer_ends_where_the_context_does(engine: ChatEngine) -> None:
    """With finish `length`, though more was asked for."""
    endless = SamplingParams(temperature=0, logit_bias={42: 1000.0})
    outputs = await collect(engine, GenerationRequest("a", [5] * 250, 100, endless))
    assert len(tokens(outputs)) == 6
    assert outputs[-1].finish == "length"


async def test_a_prompt_seen_before_is_reported_as_cached(engine: ChatEngine) -> None:
    """Within an account; the answer is the same."""
    prompt = list(range(5, 100))
    answers = [
        await collect(engine, GenerationRequest(f"{at}", prompt, 8, GREEDY, account=account))
        for at, account in enumerate(["a", "a", "b"])
    ]
    first, again, other = (answer[0].cached_tokens for answer in answers)
    assert (first, other) == (0, 0)
    assert 80 <= again < len(prompt)
    assert tokens(answers[0]) == tokens(answers[1]) == tokens(answers[2])
