from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.protocol import GenerationRequest, SamplingParams, StepOutput
from omai_ray.engines.chat.transformers_engine import TransformersEngine
from omai_ray.errors import CheckpointError, Overloaded
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
    engine._load()  # the thread is not started yet, so that what is queued stays queued
    first = asyncio.create_task(collect(engine, GenerationRequest("a", [5], 2, GREEDY)))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 requests waiting"):
        await collect(engine, GenerationRequest("b", [5], 2, GREEDY))
    engine._load = lambda: None  # type: ignore[method-assign]
    engine.start()
    assert len(tokens(await first)) >= 1
    await engine.drain()


async def test_a_failing_step_fails_its_batch_and_not_the_engine(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in a step reaches its requests; the next request is served."""
    model = engine._model
    with monkeypatch.context() as patched:
        patched.setattr(engine, "_model", None)
        outputs = await collect(engine, GenerationRequest("a", [5], 2, GREEDY))
        assert outputs[-1].finish == "error"
    assert engine._model is model
    engine.check_health()
    assert (await collect(engine, GenerationRequest("b", [5], 2, GREEDY)))[-1].finish is not None


def test_pickled_weights_are_refused_at_load(checkpoint: Path, tmp_path: Path) -> None:
    """A directory without safetensors is refused, with what was found and what to do."""
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no \.safetensors.*pytorch_model\.bin"):
        TransformersEngine(ModelSpec(name="m", task="chat", source=str(tmp_path)))
