"""The text layer above the engines: choices, stop strings, seeds, tool calls, log-probabilities."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.batching_engine import BatchingEngine
from omai_ray.engines.chat.protocol import (
    EngineStats,
    GenerationRequest,
    SamplingParams,
    StepOutput,
    TokenLogprobs,
)
from omai_ray.engines.chat.text import ChatDelta, ChatGenerator, ChatJob
from omai_ray.errors import Overloaded, ServerError
from omai_ray.text.tokenizer import TextTokenizer
from omai_ray.text.tools import ToolCall

PROMPT = [5, 9, 40]
HOT = SamplingParams(temperature=1.0, seed=7)
Way = Callable[[ChatGenerator, ChatJob], Awaitable[list[ChatDelta]]]


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> TextTokenizer:
    """Return its tokenizer."""
    return TextTokenizer(checkpoint)


@pytest.fixture
async def engine(checkpoint: Path) -> AsyncIterator[BatchingEngine]:
    """Return a running engine over it."""
    engine = BatchingEngine(ModelSpec(name="m", task="chat", source=str(checkpoint)))
    engine.start()
    yield engine
    await engine.drain()


class Scripted:
    """An engine that says what a test wrote, `size` tokens at a time."""

    context = 4096
    vocab_size = 320
    stop_token_ids = frozenset({1})

    def __init__(self, ids: list[int], size: int = 1, end: StepOutput | None = None) -> None:
        steps = [ids[at : at + size] for at in range(0, len(ids), size)]
        logprob = TokenLogprobs(-0.5, [(5, -0.5)])
        self._outputs = [StepOutput(step, logprobs=[logprob] * len(step)) for step in steps]
        self._outputs.append(end or StepOutput([1], "stop", [logprob]))
        self.open = 0
        self.requests: list[GenerationRequest] = []

    def start(self) -> None: ...

    async def drain(self) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def stats(self) -> EngineStats:
        return EngineStats(0, 0)

    def check_health(self) -> None: ...

    async def generate(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
        self.open += 1
        self.requests.append(request)
        try:
            for output in self._outputs:
                await asyncio.sleep(0)
                yield output
        finally:
            self.open -= 1


def choices_of(job: ChatJob) -> list[ChatDelta]:
    """Return a job's choices, empty."""
    return [ChatDelta(index) for index in range(job.n)]


async def answer(generator: ChatGenerator, job: ChatJob) -> list[ChatDelta]:
    """Return the complete choices of a job."""
    choices = choices_of(job)
    async for deltas in generator.stream(job):
        for delta in deltas:
            choices[delta.index].absorb(delta)
    return choices


async def whole(generator: ChatGenerator, job: ChatJob) -> list[ChatDelta]:
    """Return the same in one piece, without what depends on the time."""
    choices = choices_of(job)
    await generator.answer(job, choices)
    assert all(choice.age_s > 0 for choice in choices)
    return [dataclasses.replace(choice, age_s=0.0) for choice in choices]


def job(**fields: object) -> ChatJob:
    """Return a job for a scripted engine."""
    return ChatJob("r", PROMPT, 4000, **fields)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not gather tokens over time: each delta is seen as soon as it is there."""
    monkeypatch.setattr("omai_ray.engines.chat.text.FLUSH_S", 0)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["e two"], "on"),
        ("one two three", ["three"], "one two "),
        ("one two three", ["four", "ee"], "one two thr"),
        ("one two thr", ["three"], "one two thr"),
        ("日本語🙂です", ["🙂"], "日本語"),
        ("aaab", ["aab"], "a"),
    ],
)
async def test_a_stop_string_across_tokens_is_never_told(
    tokenizer: TextTokenizer, size: int, text: str, stops: list[str], expected: str
) -> None:
    """Neither it nor its beginning, whatever the tokens' edges; what follows is not asked for."""
    engine = Scripted(tokenizer.encode(text, special_tokens=False), size)
    (choice,) = await answer(ChatGenerator(engine, tokenizer), job(stop=stops))
    assert expected == choice.text
    assert choice.finish == "stop"
    assert engine.open == 0


async def test_a_limit_is_length_unless_a_stop_string_came_first(tokenizer: TextTokenizer) -> None:
    """The last token may complete a stop string."""
    ids = tokenizer.encode("one two", special_tokens=False)
    end = StepOutput(ids[-1:], "length")
    generator = ChatGenerator(Scripted(ids[:-1], end=end), tokenizer)
    (plain,) = await answer(generator, job())
    (stopped,) = await answer(generator, job(stop=["two"]))
    assert ("one two", "length") == (plain.text, plain.finish)
    assert ("one ", "stop") == (stopped.text, stopped.finish)


@pytest.mark.parametrize("size", [1, 4, 1000])
async def test_a_tool_call_is_told_whole_and_ends_with_its_reason(
    tokenizer: TextTokenizer, size: int
) -> None:
    """Text before it is text; the reason is `tool_calls`."""
    text = 'Yes. <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    engine = Scripted(tokenizer.encode(text, special_tokens=False), size)
    generator = ChatGenerator(engine, tokenizer)
    (choice,) = await answer(generator, job(parse_tools=True))
    assert "Yes. " == choice.text
    assert [ToolCall("f", '{"a": 1}')] == choice.tool_calls
    assert choice.finish == "tool_calls"
    (plain,) = await answer(generator, job())
    assert (text, "stop") == (plain.text, plain.finish)


async def test_every_sampled_token_is_counted_and_has_its_logprob(tokenizer: TextTokenizer) -> None:
    """The end-of-sequence token is counted, and has neither text nor log-probability."""
    ids = tokenizer.encode("one two", special_tokens=False)
    (choice,) = await answer(ChatGenerator(Scripted(ids), tokenizer), job())
    assert len(ids) + 1 == choice.tokens
    assert [tokenizer.decode([token]) for token in ids] == [p.token for p in choice.logprobs]
    assert choice.text == "".join(p.token for p in choice.logprobs)


async def test_the_choices_of_a_seed_are_those_of_the_seeds_that_follow(
    engine: BatchingEngine, tokenizer: TextTokenizer
) -> None:
    """Choice i of seed s is what seed s + i alone says; the same job says the same again."""
    generator = ChatGenerator(engine, tokenizer)
    three = await answer(generator, ChatJob("a", PROMPT, 20, HOT, n=3))
    again = await answer(generator, ChatJob("b", PROMPT, 20, HOT, n=3))
    assert three == again
    for index, choice in enumerate(three):
        sampling = SamplingParams(temperature=1.0, seed=7 + index)
        (alone,) = await answer(generator, ChatJob(f"c{index}", PROMPT, 20, sampling))
        assert (alone.text, alone.finish) == (choice.text, choice.finish)


async def test_a_whole_answer_is_what_a_stream_adds_up_to(
    engine: BatchingEngine, tokenizer: TextTokenizer
) -> None:
    """Text, tokens, log-probabilities and reasons, of one choice and of several."""
    generator = ChatGenerator(engine, tokenizer)
    sampling = dataclasses.replace(HOT, logprobs=2)
    for n in (1, 3):
        streamed = await answer(generator, ChatJob(f"s{n}", PROMPT, 20, sampling, n=n))
        complete = await whole(generator, ChatJob(f"w{n}", PROMPT, 20, sampling, n=n))
        assert streamed == complete


async def test_without_a_seed_choices_differ(
    engine: BatchingEngine, tokenizer: TextTokenizer
) -> None:
    """Each draws its own."""
    sampling = SamplingParams(temperature=1.0)
    choices = await answer(
        ChatGenerator(engine, tokenizer), ChatJob("a", PROMPT, 30, sampling, n=4)
    )
    assert len({choice.text for choice in choices}) == 4


async def test_a_tiny_temperature_is_argmax(
    engine: BatchingEngine, tokenizer: TextTokenizer
) -> None:
    """Dividing by it must not overflow."""
    generator = ChatGenerator(engine, tokenizer)
    texts = set()
    for temperature in (0.0, 1e-6, 1e-40, 5e-324):
        sampling = SamplingParams(temperature=temperature, seed=1)
        (choice,) = await answer(generator, ChatJob(f"t{temperature}", PROMPT, 12, sampling))
        texts.add(choice.text)
    assert len(texts) == 1


async def test_a_seed_at_the_edge_of_64_bits_works_for_many_choices(
    engine: BatchingEngine, tokenizer: TextTokenizer
) -> None:
    """Seeds that follow the last one wrap around."""
    for seed in (2**63 - 1, -(2**63)):
        sampling = SamplingParams(temperature=1.0, seed=seed)
        choices = await answer(
            ChatGenerator(engine, tokenizer), ChatJob(f"s{seed}", PROMPT, 5, sampling, n=2)
        )
        assert [5, 5] == [choice.tokens for choice in choices]


async def test_an_engine_that_gives_up_is_a_server_error(tokenizer: TextTokenizer) -> None:
    """Without what it says of the cause."""
    for end in (StepOutput([], "error", error="RuntimeError"), StepOutput([], "abort")):
        generator = ChatGenerator(Scripted([5, 9], end=end), tokenizer)
        with pytest.raises(ServerError, match="could not finish the answer"):
            await answer(generator, job(n=2))


@pytest.mark.parametrize("way", [answer, whole])
async def test_one_choice_that_fails_ends_the_others(tokenizer: TextTokenizer, way: Way) -> None:
    """Nothing runs on for an answer that nobody gets."""

    class Picky(Scripted):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
            if request.request_id == "r-1":
                raise Overloaded("full")
            async for output in super().generate(request):
                yield output

    engine = Picky([5] * 1000)
    with pytest.raises(Overloaded):
        await way(ChatGenerator(engine, tokenizer), job(n=3))
    assert engine.open == 0


async def test_leaving_early_ends_every_choice(tokenizer: TextTokenizer) -> None:
    """A closed stream leaves no generation behind."""
    engine = Scripted([5] * 1000)
    stream = ChatGenerator(engine, tokenizer).stream(job(n=3))
    await anext(stream)
    assert engine.open == 3
    await stream.aclose()  # type: ignore[attr-defined]
    assert engine.open == 0


async def test_a_cancelled_answer_has_what_was_generated(tokenizer: TextTokenizer) -> None:
    """To the token, in every choice; and no generation is left behind."""

    class Stuck(Scripted):
        async def generate(self, request: GenerationRequest) -> AsyncIterator[StepOutput]:
            said = 3 + int(request.request_id.removeprefix("r-"))
            async for output in super().generate(request):
                if not said:
                    stuck.release()
                    await asyncio.Event().wait()
                said -= 1
                yield output

    stuck = asyncio.Semaphore(0)
    engine = Stuck([5] * 1000)
    choices = choices_of(job(n=2))
    answering = asyncio.create_task(ChatGenerator(engine, tokenizer).answer(job(n=2), choices))
    for _ in choices:
        await stuck.acquire()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert [3, 4] == [choice.tokens for choice in choices]
    assert [None, None] == [choice.finish for choice in choices]
    assert all(choice.age_s > 0 for choice in choices)
    assert engine.open == 0


async def test_a_waiting_request_that_is_left_frees_its_place(
    checkpoint: Path, tokenizer: TextTokenizer
) -> None:
    """Clients that went away do not fill the queue; an aborted one is told so at once."""
    spec = ModelSpec(name="m", task="chat", source=str(checkpoint), max_queued_requests=2)
    engine = BatchingEngine(spec)
    engine.vocab_size = 256  # the thread is not started, so that what is queued stays queued
    gone = [asyncio.create_task(_first(engine, f"g{number}")) for number in range(2)]
    await asyncio.sleep(0)
    assert engine.stats().waiting == 2
    gone[0].cancel()
    engine.abort("g1")
    assert (await gone[1]).finish == "abort"
    await asyncio.gather(*gone, return_exceptions=True)
    assert engine.stats().waiting == 0


async def _first(engine: BatchingEngine, request_id: str) -> StepOutput:
    return await anext(aiter(engine.generate(GenerationRequest(request_id, PROMPT, 5))))
