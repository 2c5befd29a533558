"""How POST /v1/responses writes an answer: items, and the events that build them up."""

from __future__ import annotations

import time
import uuid
from typing import Any

from omai_ray.api.chat import token_logprob
from omai_ray.api.generation import TokenUsage
from omai_ray.api.schemas.responses import ResponseRequest
from omai_ray.api.sse import frame
from omai_ray.engines.chat.text import ChatDelta, TextLogprob
from omai_ray.errors import OMAiError
from omai_ray.text.tools import ToolCall


class ResponseForm:
    """Writes responses, and their events."""

    def __init__(self, model: str, body: ResponseRequest) -> None:
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._body = body
        self._logprobs = body.logprobs
        self._output: list[dict[str, Any]] = []
        self._finish: str | None = None
        self._message: _Message | None = None
        # Space, and tokens without text: before a call they are no message.
        self._held = ""
        self._held_tokens: list[dict[str, Any]] = []
        self._begun = False
        self._sequence = 0

    def whole(self, choices: list[ChatDelta], usage: TokenUsage) -> dict[str, Any]:
        """Return the response's body."""
        (choice,) = choices
        said = "" if choice.tool_calls and choice.text.isspace() else choice.text
        status = "incomplete" if choice.finish == "length" else "completed"
        if said or not choice.tool_calls:
            message = _Message(len(self._output))
            message.text, message.logprobs = said, self._tokens(choice.logprobs)
            self._output.append(message.item(status))
        self._output += [_call_item(call) for call in choice.tool_calls]
        self._finish = choice.finish
        return self._response(status, usage)

    def frames(self, deltas: list[ChatDelta]) -> bytes:
        """Return the events of what the answer gained; the first call begins the response."""
        written: list[bytes] = []
        if not self._begun:
            self._begun = True
            started = self._response("in_progress", None)
            written.append(self._event("response.created", response=started))
            written.append(self._event("response.in_progress", response=started))
        for delta in deltas:
            if delta.text or (self._logprobs and delta.logprobs):
                written += self._text(delta)
            for call in delta.tool_calls:
                self._drop_held()
                written += self._end_message("completed")
                written += self._call(call)
            self._finish = delta.finish or self._finish
        return b"".join(written)

    def end(self, usage: TokenUsage) -> bytes:
        """Return the events that complete the response."""
        status = "incomplete" if self._finish == "length" else "completed"
        written: list[bytes] = []
        if not self._output:
            begun, message = self._begin_message()
            written += begun
            if self._held or self._held_tokens:
                written.append(self._gain(message, self._held, self._held_tokens))
        written += self._end_message(status)
        written.append(self._event(f"response.{status}", response=self._response(status, usage)))
        return b"".join(written)

    def failure(self, error: OMAiError) -> bytes:
        """Return an error event, and the response as failed."""
        code = error.code or error.type
        told = self._event("error", code=code, message=error.message, param=error.param)
        failed = self._response("failed", None)
        failed["error"] = {"code": "server_error", "message": error.message}
        return told + self._event("response.failed", response=failed)

    def _text(self, delta: ChatDelta) -> list[bytes]:
        text = self._held + delta.text
        tokens = self._held_tokens + self._tokens(delta.logprobs)
        if self._message is None and (not text or (self._body.tools and text.isspace())):
            self._held, self._held_tokens = text, tokens
            return []
        self._drop_held()
        written, message = self._begin_message()
        return [*written, self._gain(message, text, tokens)]

    def _drop_held(self) -> None:
        self._held, self._held_tokens = "", []

    def _gain(self, message: _Message, text: str, tokens: list[dict[str, Any]]) -> bytes:
        message.text += text
        message.logprobs += tokens
        place = message.place
        return self._event("response.output_text.delta", **place, delta=text, logprobs=tokens)

    def _begin_message(self) -> tuple[list[bytes], _Message]:
        """Return the message that is being written, and the events that begin it."""
        if self._message is not None:
            return [], self._message
        message = self._message = _Message(len(self._output))
        item = {**message.item("in_progress"), "content": []}
        begun = [
            self._event("response.output_item.added", output_index=message.index, item=item),
            self._event("response.content_part.added", **message.place, part=message.part()),
        ]
        return begun, message

    def _end_message(self, status: str) -> list[bytes]:
        message, self._message = self._message, None
        if message is None:
            return []
        item = message.item(status)
        self._output.append(item)
        text = {"text": message.text, "logprobs": message.logprobs}
        return [
            self._event("response.output_text.done", **message.place, **text),
            self._event("response.content_part.done", **message.place, part=message.part()),
            self._event("response.output_item.done", output_index=message.index, item=item),
        ]

    def _call(self, call: ToolCall) -> list[bytes]:
        item = _call_item(call)
        index = len(self._output)
        self._output.append(item)
        begun = {**item, "arguments": "", "status": "in_progress"}
        place = {"item_id": item["id"], "output_index": index}
        arguments = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", output_index=index, item=begun),
            self._event(f"{arguments}.delta", **place, delta=call.arguments),
            self._event(f"{arguments}.done", **place, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", output_index=index, item=item),
        ]

    def _tokens(self, logprobs: list[TextLogprob]) -> list[dict[str, Any]]:
        return [token_logprob(token) for token in logprobs] if self._logprobs else []

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\n" + frame(event)

    def _response(self, status: str, usage: TokenUsage | None) -> dict[str, Any]:
        body = self._body
        ended = status in ("completed", "incomplete")
        response = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self._model,
            "output": list(self._output) if ended else [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": None,
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": _text_settings(body),
            "tool_choice": _given(body.tool_choice, "auto"),
            "tools": [tool.model_dump() for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "metadata": body.metadata or {},
        }
        return response if usage is None else {**response, "usage": _usage(usage)}


class _Message:
    """The text of an answer as it grows."""

    def __init__(self, index: int) -> None:
        self.id = f"msg_{uuid.uuid4().hex}"
        self.index = index
        self.text = ""
        self.logprobs: list[dict[str, Any]] = []

    @property
    def place(self) -> dict[str, Any]:
        """Where its text is in the response."""
        return {"item_id": self.id, "output_index": self.index, "content_index": 0}

    def part(self) -> dict[str, Any]:
        """Return its text as it is now."""
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": list(self.logprobs),
        }

    def item(self, status: str) -> dict[str, Any]:
        """Return it as an item."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [self.part()],
        }


def _call_item(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "call_id": f"call_{uuid.uuid4().hex[:24]}",
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _given(value: Any, default: str) -> Any:
    if value is None:
        return default
    return value if isinstance(value, str) else value.model_dump()


def _text_settings(body: ResponseRequest) -> dict[str, Any]:
    if body.text is None or body.text.format is None:
        return {"format": {"type": "text"}}
    return {"format": body.text.format.model_dump(by_alias=True, exclude_none=True)}


def _usage(usage: TokenUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }
