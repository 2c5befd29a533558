"""POST /v1/chat/completions."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import permitted, principal_of
from omai_ray.api.answer_form import answer_grammar
from omai_ray.api.backends import ServedChat, ServedModels
from omai_ray.api.context import context_of
from omai_ray.api.generation import (
    ChunkedForm,
    TextService,
    TokenUsage,
    completion_limit,
    sampling_params,
    written,
)
from omai_ray.api.offload import inline_or_thread
from omai_ray.api.schemas.chat import ChatMessage, ChatRequest, Tool
from omai_ray.api.validation import read_body
from omai_ray.engines.chat.text import ChatDelta, ChatJob, TextLogprob
from omai_ray.text.tools import ToolCall

_CHUNK = "chat.completion.chunk"


class ChatEndpoint:
    """Serves chat completions."""

    def __init__(self, models: ServedModels, service: TextService) -> None:
        self._models = models
        self._service = service

    async def create(self, request: Request) -> Response:
        """Answer one request, whole or as a stream."""
        body = await read_body(request, ChatRequest)
        served = permitted(request, body.model, self._models.chat(body.model))
        job = await chat_job(request, served, body)
        return await self._service.answer(
            request,
            served,
            [job],
            ChatForm(served.spec.name, job, include_usage=body.include_usage),
            stream=bool(body.stream),
            typical_tokens=body.completion_limit,
        )


async def chat_job(request: Request, served: ServedChat, body: ChatRequest) -> ChatJob:
    """Return the job that a request is. Raises InvalidRequest, ContextTooLong."""
    prompt_ids = await render(served, body, len(await request.body()))
    limit = completion_limit(served, len(prompt_ids), body.completion_limit, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return ChatJob(
        request_id=context_of(request.scope).usage_id,
        account=principal_of(request).account_id,
        adapter=served.adapter,
        prompt_ids=prompt_ids,
        max_new_tokens=limit,
        sampling=sampling_params(body, served.tokenizer.text, logprobs),
        n=body.n or 1,
        stop=body.stops,
        parse_tools=bool(body.tools) and body.tool_choice != "none",
        one_call=body.parallel_tool_calls is False,
        grammar=answer_grammar(body, served.tokenizer.text),
        session=session_of(body),
        begins=begins(body),
    )


def session_of(body: ChatRequest) -> str:
    """Return what the turns of a conversation have in common: the client's own key, or its start.

    It starts with all up to the first message that is not an instruction.
    """
    if body.prompt_cache_key:
        return body.prompt_cache_key
    digest = hashlib.blake2b(digest_size=16)
    for message in body.messages:
        digest.update(message.model_dump_json().encode())
        if message.role not in ("system", "developer"):
            break
    return digest.hexdigest()


def begins(body: ChatRequest) -> bool:
    """Tell whether a request is a conversation's first: no answer is in it, and no key names it."""
    answered = any(message.role == "assistant" for message in body.messages)
    return not (body.prompt_cache_key or answered)


async def render(served: ServedChat, body: ChatRequest, size: int) -> list[int]:
    """Return the prompt's ids. size: of the request, in bytes."""
    tools = [] if body.tool_choice == "none" else body.tools or []
    messages, functions = plain_messages(body.messages, tools)
    return await inline_or_thread(size, served.tokenizer.render, messages, functions)


def plain_messages(
    messages: Sequence[ChatMessage], tools: Sequence[Tool]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return messages and tools as chat templates take them."""
    plain = [message.model_dump(exclude_none=True) for message in messages]
    for message in plain:
        if message["role"] == "developer":
            message["role"] = "system"
    return plain, [tool.model_dump(exclude_none=True) for tool in tools]


class ChatForm(ChunkedForm):
    """Writes chat completions, and their chunks."""

    def __init__(self, model: str, job: ChatJob, *, include_usage: bool = False) -> None:
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": _CHUNK, "model": model}
        super().__init__(head, include_usage=include_usage)
        self._logprobs = job.sampling.logprobs is not None
        self._calls = [0] * job.n
        self._begun = [False] * job.n

    def whole(self, choices: list[ChatDelta], usage: TokenUsage) -> dict[str, Any]:
        """Return the response's body."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(choice) for choice in choices],
            "usage": usage.on_the_wire(),
        }

    def frames(self, deltas: list[ChatDelta]) -> bytes:
        """Return chunks: of each choice the role first, the finish reason last."""
        found = []
        for delta in deltas:
            if not self._begun[delta.index]:
                self._begun[delta.index] = True
                found.append(self._gain(delta.index, {"role": "assistant", "content": ""}))
            if delta.text or (self._logprobs and delta.logprobs):
                logprobs = _logprobs(delta.logprobs) if self._logprobs else None
                found.append(self._gain(delta.index, {"content": delta.text}, logprobs))
            found += [self._call(delta.index, call) for call in delta.tool_calls]
            if delta.finish is not None:
                found.append(self._gain(delta.index, {}, finish_reason=delta.finish))
        return b"".join(found)

    def _choice(self, choice: ChatDelta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.tool_calls:
            message["content"] = choice.text.strip() or None
            message["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
        return {
            "index": choice.index,
            "message": message,
            "logprobs": _logprobs(choice.logprobs) if self._logprobs else None,
            "finish_reason": choice.finish,
        }

    def _call(self, index: int, call: ToolCall) -> bytes:
        position = self._calls[index]
        self._calls[index] += 1
        return self._gain(index, {"tool_calls": [{"index": position, **_tool_call(call)}]})

    def _gain(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._chunk(choice)


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _logprobs(tokens: list[TextLogprob]) -> dict[str, Any]:
    return {"content": [token_logprob(token) for token in tokens], "refusal": None}


def token_logprob(token: TextLogprob) -> dict[str, Any]:
    """Return a token's probability, and those of the likeliest in its place, as OpenAI has them."""
    top = [_logprob(text, value) for text, value in token.top]
    return {**_logprob(token.token, token.logprob), "top_logprobs": top}


def _logprob(text: str, value: float) -> dict[str, Any]:
    return {"token": text, "logprob": written(value), "bytes": list(text.encode())}
