"""Clients that ask again and again, in every way, and keep what they were told of it."""

from __future__ import annotations

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

from tests.callers import Callers
from tests.faults.platform import CHAT, EMBEDDING, ENDLESS, HELLO
from tests.ray.conftest import Served

Usage = tuple[str, int, int]
"""A model, and the tokens of a prompt and of its completion."""
TOKENS = 24


class Traffic(Callers):
    """Clients of one account, one for each way of asking.

    answered: the usage of each complete answer; left: how many streams were left; failures: what
    else came.
    """

    def __init__(self, served: Served, key: str, *ways: str) -> None:
        super().__init__(*(partial(self._ask, WAYS[way]) for way in ways))
        self._served = served
        self._key = key
        self._lock = threading.Lock()
        self.answered: Counter[Usage] = Counter()
        self.left = 0
        self.failures: list[str] = []

    def _ask(self, way: Callable[[httpx.Client, int], Usage | str | None]) -> None:
        with self._served.client(self._key) as client:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                try:
                    outcome = way(client, number)
                except httpx.HTTPError as error:
                    outcome = repr(error)
                with self._lock:
                    if isinstance(outcome, tuple):
                        self.answered[outcome] += 1
                    elif outcome is None:
                        self.left += 1
                    else:
                        self.failures.append(outcome)


def _whole(client: httpx.Client, number: int) -> Usage | str:
    body = {"model": CHAT, "messages": HELLO, "max_tokens": 1 + number % TOKENS, **ENDLESS}
    return _usage(client.post("/v1/chat/completions", json=body), CHAT)


def _embed(client: httpx.Client, number: int) -> Usage | str:
    body = {"model": EMBEDDING, "input": ["Hello " * (1 + number % 5)] * (1 + number % 3)}
    return _usage(client.post("/v1/embeddings", json=body), EMBEDDING)


def _usage(answer: httpx.Response, model: str) -> Usage | str:
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[-300:]}"
    usage = answer.json()["usage"]
    return model, usage["prompt_tokens"], usage.get("completion_tokens", 0)


def _stream(client: httpx.Client, number: int) -> Usage | str:
    answer = client.post("/v1/chat/completions", json=_streamed(1 + number % TOKENS))
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    if answer.status_code != 200 or not lines or lines[-1] != "data: [DONE]":
        return f"{answer.status_code}: {answer.text[-300:]}"
    usage = json.loads(lines[-2].removeprefix("data: "))["usage"]
    return CHAT, usage["prompt_tokens"], usage["completion_tokens"]


def _leave(client: httpx.Client, number: int) -> str | None:
    with client.stream("POST", "/v1/chat/completions", json=_streamed(900)) as answer:
        for line in answer.iter_lines():
            if answer.status_code != 200 or '"error"' in line:
                return f"{answer.status_code}: {line[-300:]}"
            if line.startswith("data: "):
                return None
    return "a stream without an event"


def _streamed(tokens: int) -> dict[str, Any]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": CHAT, "messages": HELLO, "max_tokens": tokens, **options, **ENDLESS}


WAYS: dict[str, Callable[[httpx.Client, int], Usage | str | None]] = {
    "whole": _whole,
    "stream": _stream,
    "embed": _embed,
    "leave": _leave,
}
