"""POST /v1/chat/completions: validate, admit, generate, settle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import Accountant, Meter, principal_of, status_of
from omai_ray.api.answer_form import answer_grammar
from omai_ray.api.backends import ServedChat, ServedModels
from omai_ray.api.context import CLIENT_CLOSED_REQUEST, context_of, internal_error
from omai_ray.api.render import JsonBytes
from omai_ray.api.schemas.chat import ChatRequest
from omai_ray.api.sse import DONE, EventStream, frame, while_connected
from omai_ray.api.validation import read_body
from omai_ray.engines.chat.protocol import SamplingParams
from omai_ray.engines.chat.text import ChatDelta, ChatJob, TextLogprob
from omai_ray.errors import ContextTooLong, InvalidRequest, OMAiError
from omai_ray.text.tools import ToolCall

_log = logging.getLogger(__name__)
# Rendering and counting a prompt above this many characters leaves the event loop.
_INLINE_CHARACTERS = 20_000


class ChatEndpoint:
    """Serves chat completions."""

    def __init__(self, models: ServedModels, accountant: Accountant) -> None:
        self._models = models
        self._accountant = accountant

    async def create(self, request: Request) -> Response:
        """Answer one request, whole or as a stream."""
        body = await read_body(request, ChatRequest)
        served = self._models.chat(body.model)
        principal_of(request).require_model(body.model, served.spec.name)
        prompt_ids = await _render(served, body, len(await request.body()))
        limit = _completion_limit(served, len(prompt_ids), body)
        job = _job(served, body, prompt_ids, limit, request)
        typical = body.completion_limit or served.spec.typical_output_tokens
        meter = await self._accountant.admit(
            request,
            served.spec,
            prompt_tokens=len(prompt_ids),
            reserved_tokens=len(prompt_ids) + job.n * min(limit, typical),
        )
        answer = Answering(served, job, meter)
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            frames = answer.frames(include_usage)
            return EventStream(await while_connected(request.receive, _first(frames)), frames)
        return JsonBytes(await while_connected(request.receive, answer.whole()))


async def _first(frames: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(frames)


async def _render(served: ServedChat, body: ChatRequest, size: int) -> list[int]:
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    for message in messages:
        if message["role"] == "developer":
            message["role"] = "system"
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    if body.tool_choice == "none":
        tools = []
    if size <= _INLINE_CHARACTERS:
        return served.tokenizer.render(messages, tools)
    return await asyncio.to_thread(served.tokenizer.render, messages, tools)


def _completion_limit(served: ServedChat, prompt_tokens: int, body: ChatRequest) -> int:
    """Return how many tokens an answer may have. Raises ContextTooLong."""
    context = served.tokenizer.context
    wanted = body.completion_limit
    if prompt_tokens + (wanted or 1) > context:
        total = prompt_tokens + (wanted or 0)
        raise ContextTooLong(
            f"This model's maximum context length is {context} tokens. However, you requested "
            f"{total} tokens ({prompt_tokens} in the messages, {wanted or 0} in the completion). "
            "Please reduce the length of the messages or completion.",
            param="messages",
        )
    return wanted or context - prompt_tokens


def _job(
    served: ServedChat, body: ChatRequest, prompt_ids: list[int], limit: int, request: Request
) -> ChatJob:
    bias = {int(key): value for key, value in (body.logit_bias or {}).items()}
    for token_id in bias:
        if token_id >= served.tokenizer.text.vocab_size:
            raise InvalidRequest(
                f"Invalid 'logit_bias': token id {token_id} is outside the vocabulary "
                f"(0 to {served.tokenizer.text.vocab_size - 1}).",
                param="logit_bias",
            )
    sampling = SamplingParams(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return ChatJob(
        request_id=context_of(request.scope).usage_id,
        account=principal_of(request).account_id,
        adapter=served.adapter,
        prompt_ids=prompt_ids,
        max_new_tokens=limit,
        sampling=sampling,
        n=body.n or 1,
        stop=body.stops,
        parse_tools=bool(body.tools) and body.tool_choice != "none",
        one_call=body.parallel_tool_calls is False,
        grammar=answer_grammar(body, served.tokenizer.text),
    )


class Answering:
    """One admitted job and its account, until the last byte."""

    def __init__(self, served: ServedChat, job: ChatJob, meter: Meter) -> None:
        self._job = job
        self._meter = meter
        self._deltas = served.backend.stream(job)
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": served.spec.name,
        }

    async def whole(self) -> dict[str, Any]:
        """Return the complete response; the usage is recorded when it does."""
        choices = [ChatDelta(index) for index in range(self._job.n)]
        status = CLIENT_CLOSED_REQUEST
        try:
            async for deltas in self._counted():
                for delta in deltas:
                    choices[delta.index].absorb(delta)
            status = 200
        except Exception as error:
            status = status_of(error)
            raise
        finally:
            await self._close(status)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [_choice(choice, self._job) for choice in choices],
            "usage": self._usage(),
        }

    async def frames(self, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Yield the response's events.

        A failure before the first is raised, so that it keeps its status; a later one, the
        headers being out, becomes the last event.
        """
        head: dict[str, Any] = {**self._head, "object": "chat.completion.chunk"}
        if include_usage:
            head["usage"] = None
        chunks = _Chunks(self._job)
        status = CLIENT_CLOSED_REQUEST
        begun = False
        try:
            async for deltas in self._counted():
                for choice in chunks.of(deltas):
                    begun = True
                    yield frame({**head, "choices": [choice]})
            await self._close(200)
            if include_usage:
                yield frame({**head, "choices": [], "usage": self._usage()})
            yield DONE
        except Exception as error:
            status = status_of(error)
            if not begun:
                raise
            yield frame(_failure(error).envelope())
        finally:
            with contextlib.suppress(OMAiError):  # what failed to close has been told, or logged
                await self._close(status)

    async def _counted(self) -> AsyncIterator[list[ChatDelta]]:
        async for deltas in self._deltas:
            self._meter.note_first_token()
            self._meter.prompt_tokens = len(self._job.prompt_ids)
            self._meter.completion_tokens += sum(delta.tokens for delta in deltas)
            for delta in deltas:
                self._meter.cached_tokens = max(self._meter.cached_tokens, delta.cached_tokens)
                self._meter.finish_reason = delta.finish or self._meter.finish_reason
            yield deltas

    async def _close(self, status: int) -> None:
        try:
            await self._deltas.aclose()  # type: ignore[attr-defined]
        finally:
            await self._meter.close(status)

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._meter.prompt_tokens,
            "completion_tokens": self._meter.completion_tokens,
            "total_tokens": self._meter.total_tokens,
            "prompt_tokens_details": {"cached_tokens": self._meter.cached_tokens},
        }


class _Chunks:
    """Turns what choices gain into the choices of chunks."""

    def __init__(self, job: ChatJob) -> None:
        self._logprobs = job.sampling.logprobs is not None
        self._calls = [0] * job.n
        self._begun: set[int] = set()

    def of(self, deltas: list[ChatDelta]) -> list[dict[str, Any]]:
        """Return the chunk choices of these deltas: role first, finish reason last."""
        choices = []
        for delta in deltas:
            if delta.index not in self._begun:
                self._begun.add(delta.index)
                choices.append(_chunk(delta.index, {"role": "assistant", "content": ""}))
            if delta.text or (self._logprobs and delta.logprobs):
                logprobs = _logprobs(delta.logprobs) if self._logprobs else None
                choices.append(_chunk(delta.index, {"content": delta.text}, logprobs))
            choices += [self._call(delta.index, call) for call in delta.tool_calls]
            if delta.finish is not None:
                choices.append({**_chunk(delta.index, {}), "finish_reason": delta.finish})
        return choices

    def _call(self, index: int, call: ToolCall) -> dict[str, Any]:
        position = self._calls[index]
        self._calls[index] += 1
        return _chunk(index, {"tool_calls": [{"index": position, **_tool_call(call)}]})


def _chunk(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _choice(choice: ChatDelta, job: ChatJob) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.tool_calls:
        message["content"] = choice.text.strip() or None
        message["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": None if job.sampling.logprobs is None else _logprobs(choice.logprobs),
        "finish_reason": choice.finish,
    }


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _logprobs(tokens: list[TextLogprob]) -> dict[str, Any]:
    content = [
        {
            **_logprob(token.token, token.logprob),
            "top_logprobs": [_logprob(text, value) for text, value in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(value, -9999.0), "bytes": list(text.encode())}


def _failure(error: Exception) -> OMAiError:
    """Return what the client is told of a failure in mid-stream; the log gets the cause."""
    if isinstance(error, OMAiError):
        return error
    _log.error("stream failed", exc_info=error)
    return internal_error()
