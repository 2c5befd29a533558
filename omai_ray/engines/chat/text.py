"""The text layer above every chat engine: detokenising, stop strings, tool calls, n choices."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from omai_ray.engines.chat.protocol import (
    ChatEngine,
    GenerationRequest,
    Grammar,
    SamplingParams,
    StepOutput,
    TokenLogprobs,
)
from omai_ray.errors import ServerError
from omai_ray.priority import Priority
from omai_ray.tasks import alongside, run_all
from omai_ray.text.detokenizer import Detokenizer, StopMatcher
from omai_ray.text.tokenizer import TextTokenizer
from omai_ray.text.tools import ToolCall, ToolCallParser

Finish = Literal["stop", "length", "tool_calls"]
FLUSH_S = 0.03


@dataclass(frozen=True, slots=True)
class ChatJob:
    """A prompt to answer n times. max_new_tokens is for each answer.

    account, adapter, grammar, priority: as engines have them.

    one_call: an answer ends with its first tool call.

    session: the same in all turns of a conversation; it goes where the turns before have been.
    begins: whether this is the first of them.
    """

    request_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    stop: list[str] = field(default_factory=list)
    parse_tools: bool = False
    account: str = ""
    adapter: str = ""
    grammar: Grammar | None = None
    one_call: bool = False
    session: str = ""
    begins: bool = False
    priority: Priority = "online"


@dataclass(frozen=True, slots=True)
class TextLogprob:
    """A token as text, its log-probability, and the likeliest alternatives."""

    token: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass(slots=True)
class ChatDelta:
    """What one choice gained: text, whole tool calls, tokens sampled; and how it ended.

    cached_tokens: prompt tokens that had not to be computed for it. age_s: how long ago its first
    token came, where they are handed over together. queued_s: how long it waited to be begun, with
    its first tokens, where the engine knows.
    """

    index: int
    text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    tokens: int = 0
    logprobs: list[TextLogprob] = field(default_factory=list)
    finish: Finish | None = None
    cached_tokens: int = 0
    age_s: float = field(default=0.0, compare=False)
    queued_s: float | None = field(default=None, compare=False)

    def absorb(self, later: ChatDelta) -> None:
        """Append what the same choice gained next."""
        self.text += later.text
        self.tool_calls += later.tool_calls
        self.tokens += later.tokens
        self.logprobs += later.logprobs
        self.finish = later.finish
        self.cached_tokens = max(self.cached_tokens, later.cached_tokens)
        self.queued_s = later.queued_s if self.queued_s is None else self.queued_s
        self.age_s = max(self.age_s, later.age_s)


class ChatGenerator:
    """Answers jobs with one engine."""

    def __init__(self, engine: ChatEngine, tokenizer: TextTokenizer) -> None:
        self._engine = engine
        self._tokenizer = tokenizer

    async def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gained: the first tokens at once, then every FLUSH_S.

        Leaving the iterator early cancels every choice. Raises Overloaded, or ServerError where
        the engine failed.
        """
        queue: asyncio.Queue[ChatDelta | Exception] = asyncio.Queue()
        open_choices, first = job.n, True
        async with alongside(*(self._pump(job, index, queue) for index in range(job.n))):
            while open_choices:
                if not first:
                    await asyncio.sleep(FLUSH_S)
                deltas = _merge([await queue.get(), *_drain(queue)])
                open_choices -= sum(delta.finish is not None for delta in deltas)
                first = False
                yield deltas

    async def answer(self, job: ChatJob, choices: list[ChatDelta]) -> None:
        """Complete the choices, one for each of the job's n.

        Where it is cancelled or fails, they have what was generated until then. Raises as `stream`.
        """
        begun_s = [0.0] * job.n

        async def complete(index: int) -> None:
            async for delta in self._choice(job, index):
                begun_s[index] = begun_s[index] or perf_counter()
                choices[index].absorb(delta)

        try:
            await run_all(*(complete(index) for index in range(job.n)))
        finally:
            now_s = perf_counter()
            for choice, since_s in zip(choices, begun_s, strict=True):
                choice.age_s = now_s - since_s if since_s else 0.0

    async def _pump(
        self, job: ChatJob, index: int, queue: asyncio.Queue[ChatDelta | Exception]
    ) -> None:
        try:
            async for delta in self._choice(job, index):
                queue.put_nowait(delta)
        except Exception as error:  # handed to the one who reads the queue
            queue.put_nowait(error)

    async def _choice(self, job: ChatJob, index: int) -> AsyncIterator[ChatDelta]:
        sampling = job.sampling
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=sampling.seed + index)
        request = GenerationRequest(
            f"{job.request_id}-{index}",
            job.prompt_ids,
            job.max_new_tokens,
            sampling,
            account=job.account,
            adapter=job.adapter,
            grammar=job.grammar,
            priority=job.priority,
        )
        choice = _Choice(job, index, self._tokenizer, self._engine.stop_token_ids)
        outputs = self._engine.generate(request)
        try:
            async for output in outputs:
                delta = choice.take(output)
                yield delta
                if delta.finish is not None:
                    return
        finally:
            await outputs.aclose()  # type: ignore[attr-defined]


class _Choice:
    """One answer as it grows."""

    def __init__(
        self, job: ChatJob, index: int, tokenizer: TextTokenizer, stop_ids: frozenset[int]
    ) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._detokenizer = Detokenizer(tokenizer, job.prompt_ids)
        self._stops = StopMatcher(job.stop)
        self._tools = ToolCallParser() if job.parse_tools else None
        self._one_call = job.one_call

    def take(self, output: StepOutput) -> ChatDelta:
        """Turn new tokens into text and calls. Raises ServerError where the engine gave up."""
        if output.finish in ("abort", "error"):
            raise ServerError("The model could not finish the answer. Please try again.")
        delta = ChatDelta(
            self._index,
            tokens=len(output.token_ids),
            cached_tokens=output.cached_tokens,
            queued_s=output.queued_s,
        )
        delta.logprobs = [
            self._logprob(token, logprob)
            for token, logprob in zip(output.token_ids, output.logprobs or [], strict=False)
            if token not in self._stop_ids
        ]
        said = [token for token in output.token_ids if token not in self._stop_ids]
        text = self._stops.push(self._detokenizer.push(said)) if said else ""
        ended = self._stops.stopped or output.finish is not None
        if ended and not self._stops.stopped:
            text += self._stops.push(self._detokenizer.flush())
            text += "" if self._stops.stopped else self._stops.flush()
        cut = output.finish == "length" and not self._stops.stopped
        ended = self._split(delta, text, ended, cut) or ended
        if ended:
            delta.finish = self._finish(cut)
        return delta

    def _split(self, delta: ChatDelta, text: str, ended: bool, cut: bool) -> bool:
        """Put text and calls into the delta; return whether that was the only call allowed."""
        if self._tools is None:
            delta.text = text
            return False
        delta.text, delta.tool_calls = self._tools.push(text)
        if delta.tool_calls and self._one_call:
            del delta.tool_calls[1:]
            return True
        if ended and not (cut and self._tools.unfinished):  # half a call is not what is said
            delta.text += self._tools.flush()
        return False

    def _finish(self, cut: bool) -> Finish:
        if self._tools is not None and self._tools.called and not self._tools.unfinished:
            return "tool_calls"
        return "length" if cut else "stop"

    def _logprob(self, token: int, logprob: TokenLogprobs) -> TextLogprob:
        top = [(self._tokenizer.decode([other]), value) for other, value in logprob.top]
        return TextLogprob(self._tokenizer.decode([token]), logprob.logprob, top)


def _drain(queue: asyncio.Queue[ChatDelta | Exception]) -> list[ChatDelta | Exception]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


def _merge(items: list[ChatDelta | Exception]) -> list[ChatDelta]:
    """Join the deltas of each choice; raise the first failure."""
    merged: dict[int, ChatDelta] = {}
    for item in items:
        if isinstance(item, Exception):
            raise item
        if item.index in merged:
            merged[item.index].absorb(item)
        else:
            merged[item.index] = item
    return list(merged.values())
