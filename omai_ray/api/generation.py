"""An admitted job and its account, until the last byte: what all text endpoints share.

An endpoint makes jobs of its request and says in what form the answer is written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import Accountant, Meter
from omai_ray.api.backends import ChatBackend, ServedChat
from omai_ray.api.failures import internal_error
from omai_ray.api.offload import inline_or_thread
from omai_ray.api.render import JsonBytes
from omai_ray.api.schemas.sampling import SamplingFields
from omai_ray.api.sse import DONE, frame, stream_events, while_connected
from omai_ray.engines.chat.protocol import SamplingParams
from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.errors import ContextTooLong, InvalidRequest, OMAiError
from omai_ray.tasks import alongside, run_all
from omai_ray.text.tokenizer import TextTokenizer

_log = logging.getLogger(__name__)
# Characters that a token takes in an answer, as its text and as its probability.
_TEXT, _PROBABLE = 5, 100


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens read and written; cached: of those read, not computed."""

    prompt: int
    completion: int
    cached: int

    def on_the_wire(self) -> dict[str, Any]:
        """Return it as chat and text completions have it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Form(Protocol):
    """How an endpoint writes an answer."""

    def whole(self, choices: list[ChatDelta], usage: TokenUsage) -> dict[str, Any]:
        """Return the response's body."""

    def frames(self, deltas: list[ChatDelta]) -> bytes:
        """Return a stream's events for what choices gained; the first call begins the stream."""

    def end(self, usage: TokenUsage) -> bytes:
        """Return a stream's last events."""

    def failure(self, error: OMAiError) -> bytes:
        """Return a stream's last events where it fails."""


class ChunkedForm:
    """What chat and text completions have in common: one head, chunks, [DONE].

    head: what the response and all its chunks begin with.
    """

    def __init__(self, head: dict[str, Any], *, include_usage: bool) -> None:
        self._head = {**head, "created": int(time.time())}
        self._include_usage = include_usage
        self._chunk_head = {**self._head, "usage": None} if include_usage else self._head

    def end(self, usage: TokenUsage) -> bytes:
        """Return the usage, where it is wanted, and [DONE]."""
        if not self._include_usage:
            return DONE
        return frame({**self._chunk_head, "choices": [], "usage": usage.on_the_wire()}) + DONE

    def failure(self, error: OMAiError) -> bytes:
        """Return the error's envelope."""
        return frame(error.envelope())

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return frame({**self._chunk_head, "choices": [choice]})


def written(logprob: float) -> float:
    """Return a log-probability as JSON can have it: of what cannot come, OpenAI's -9999."""
    return max(logprob, -9999.0)


@dataclass(frozen=True)
class TextService:
    """Admits jobs and answers them."""

    accountant: Accountant
    keep_alive_s: float

    async def answer(
        self,
        request: Request,
        served: ServedChat,
        jobs: Sequence[ChatJob],
        form: Form,
        *,
        stream: bool,
        typical_tokens: int | None,
    ) -> Response:
        """Answer a request whole or as a stream. Raises RateLimited and what the backend raises.

        jobs: each with the same n. typical_tokens: what a completion is reserved at, by default
        what the model's entry says.
        """
        typical = typical_tokens or served.spec.typical_output_tokens
        prompt_tokens = sum(len(job.prompt_ids) for job in jobs)
        completions = sum(job.n * min(job.max_new_tokens, typical) for job in jobs)
        meter = await self.accountant.admit(
            request, served.spec, reserved_tokens=prompt_tokens + completions
        )
        answering = Answering(served.backend, jobs, meter, form)
        if stream:
            return await stream_events(
                request, answering.frames(), answering.failure, self.keep_alive_s
            )
        return await while_connected(request.receive, answering.whole())


class Answering:
    """One request's jobs as they are answered."""

    def __init__(
        self, backend: ChatBackend, jobs: Sequence[ChatJob], meter: Meter, form: Form
    ) -> None:
        self._backend = backend
        self._jobs = jobs
        self._n = jobs[0].n
        self._meter = meter
        self._form = form
        self._cached = [0] * len(jobs)
        self._begun = [False] * len(jobs)

    async def whole(self) -> Response:
        """Return the complete response; the usage is recorded when it does."""
        n = self._n
        choices = [ChatDelta(index) for index in range(len(self._jobs) * n)]
        async with self._meter.closing():
            await run_all(
                *(
                    self._complete(job, choices[position * n : (position + 1) * n])
                    for position, job in enumerate(self._jobs)
                )
            )
        usage = self._usage()
        alternatives = self._jobs[0].sampling.logprobs
        weight = usage.completion * (
            _TEXT if alternatives is None else _PROBABLE * (1 + alternatives)
        )
        return await inline_or_thread(weight, lambda: JsonBytes(self._form.whole(choices, usage)))

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield the response's events; the usage is recorded before the last one, or an error."""
        jobs, backend = self._jobs, self._backend
        stream = backend.stream(jobs[0]) if len(jobs) == 1 else _stream_all(backend, jobs)
        async with self._meter.closing(), aclosing(stream):  # type: ignore[type-var]
            async for deltas in stream:
                self._count(deltas)
                if frames := self._form.frames(deltas):
                    yield frames
        yield self._form.end(self._usage())

    def failure(self, error: Exception) -> bytes:
        """Return the events that tell of a failure in mid-stream; the log gets the cause."""
        if not isinstance(error, OMAiError):
            _log.error("stream failed", exc_info=error)
            error = internal_error()
        return self._form.failure(error)

    async def _complete(self, job: ChatJob, choices: list[ChatDelta]) -> None:
        try:
            await self._backend.answer(job, choices)
        finally:
            self._count(choices)

    def _count(self, deltas: list[ChatDelta]) -> None:
        meter = self._meter
        for delta in deltas:
            if not delta.tokens and delta.finish is None:
                continue
            meter.note_first_token(delta.age_s)
            job = delta.index // self._n
            if not self._begun[job]:
                self._begun[job] = True
                meter.prompt_tokens += len(self._jobs[job].prompt_ids)
            if delta.cached_tokens > self._cached[job]:
                self._cached[job] = delta.cached_tokens
                meter.cached_tokens = sum(self._cached)
            meter.completion_tokens += delta.tokens
            meter.finish_reason = delta.finish or meter.finish_reason

    def _usage(self) -> TokenUsage:
        meter = self._meter
        return TokenUsage(meter.prompt_tokens, meter.completion_tokens, meter.cached_tokens)


async def _stream_all(
    backend: ChatBackend, jobs: Sequence[ChatJob]
) -> AsyncIterator[list[ChatDelta]]:
    """Yield what the choices of several jobs gain, numbered through all of them."""
    queue: asyncio.Queue[list[ChatDelta] | Exception | None] = asyncio.Queue(len(jobs))

    async def pump(position: int, job: ChatJob) -> None:
        deltas = backend.stream(job)
        try:
            async for gained in deltas:
                for delta in gained:
                    delta.index += position * job.n
                await queue.put(gained)
            await queue.put(None)
        except Exception as error:  # handed to the one who reads the queue
            await queue.put(error)
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    running = len(jobs)
    async with alongside(*(pump(*numbered) for numbered in enumerate(jobs))):
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item


def completion_limit(served: ServedChat, prompt_tokens: int, wanted: int | None, param: str) -> int:
    """Return how many tokens an answer may have. Raises ContextTooLong.

    param: the field that the prompt came in.
    """
    context = served.tokenizer.context
    if prompt_tokens + (wanted or 1) > context:
        total = prompt_tokens + (wanted or 0)
        raise ContextTooLong(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{total} tokens ({prompt_tokens} in the {param}, {wanted or 0} in the completion). "
            f"Please reduce the length of the {param} or completion.",
            param=param,
        )
    return wanted or context - prompt_tokens


def sampling_params(
    body: SamplingFields, tokenizer: TextTokenizer, logprobs: int | None
) -> SamplingParams:
    """Return how tokens are drawn. Raises InvalidRequest for a bias of what is no token."""
    bias = {int(key): value for key, value in (body.logit_bias or {}).items()}
    for token_id in bias:
        if token_id >= tokenizer.vocab_size:
            raise InvalidRequest(
                f"Invalid 'logit_bias': token id {token_id} is outside the vocabulary "
                f"(0 to {tokenizer.vocab_size - 1}).",
                param="logit_bias",
            )
    return SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or 0,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
        logprobs=logprobs,
    )
