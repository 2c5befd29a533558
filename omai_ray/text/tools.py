"""Tool calls in a model's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

This is the convention of the Hermes and Qwen families, and of the built-in model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from omai_ray.text.detokenizer import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model asks to be called; arguments is a JSON object as text."""

    name: str
    arguments: str


class ToolCallParser:
    """Splits text, as it arrives, into what is said and what is called.

    A call that is not JSON, or never closed, comes back as text: nothing a model wrote is lost.
    """

    def __init__(self) -> None:
        self._pending = ""
        self._inside = False
        self.called = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Return the plain text and the calls that this piece completes."""
        self._pending += text
        said: list[str] = []
        calls: list[ToolCall] = []
        while (step := self._cut(CLOSE if self._inside else OPEN)) is not None:
            if not self._inside:
                said.append(step)
            elif call := _parse(step):
                calls.append(call)
            else:
                said.append(f"{OPEN}{step}{CLOSE}")
            self._inside = not self._inside
        if not self._inside:
            keep = overlap(self._pending, OPEN)
            said.append(self._pending[: len(self._pending) - keep])
            self._pending = self._pending[len(self._pending) - keep :]
        self.called = self.called or bool(calls)
        return "".join(said), calls

    @property
    def unfinished(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._inside

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        held = (OPEN if self._inside else "") + self._pending
        self._pending, self._inside = "", False
        return held

    def _cut(self, marker: str) -> str | None:
        """Take what precedes the marker off the pending text, the marker too."""
        before, found, after = self._pending.partition(marker)
        if not found:
            return None
        self._pending = after
        return before


def _parse(text: str) -> ToolCall | None:
    try:
        call = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    # Half a surrogate pair, which JSON can escape, is no text: it stays escaped, or is no name.
    if not _is_text(call["name"]):
        return None
    written = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(call["name"], written if _is_text(written) else json.dumps(arguments))


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which Python takes for JSON."""
    raise ValueError(constant)
