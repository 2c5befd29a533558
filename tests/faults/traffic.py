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
from tests.patience import eventually
from tests.ray.conftest import Served

Usage = tuple[str, int, int]
"""A model, and the tokens of a prompt and of its completion."""
Outcome = list[Usage] | str | None
"""The usage of complete answers; what went wrong; or nothing, of a stream that was left."""
TOKENS = 24
LINES = 40  # of a batch
BATCH_PATIENCE_S = 300.0
GOING_ON = ("validating", "in_progress", "finalizing")


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

    def _ask(self, way: Callable[[httpx.Client, int], Outcome]) -> None:
        with self._served.client(self._key) as client:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                try:
                    outcome = way(client, number)
                except (httpx.HTTPError, AssertionError) as error:
                    outcome = repr(error)
                with self._lock:
                    if isinstance(outcome, list):
                        self.answered.update(outcome)
                    elif outcome is None:
                        self.left += 1
                    else:
                        self.failures.append(outcome)


def _whole(client: httpx.Client, number: int) -> Outcome:
    body = {"model": CHAT, "messages": HELLO, "max_tokens": 1 + number % TOKENS, **ENDLESS}
    return _usage(client.post("/v1/chat/completions", json=body), CHAT)


def _embed(client: httpx.Client, number: int) -> Outcome:
    body = {"model": EMBEDDING, "input": ["Hello " * (1 + number % 5)] * (1 + number % 3)}
    return _usage(client.post("/v1/embeddings", json=body), EMBEDDING)


def _usage(answer: httpx.Response, model: str) -> Outcome:
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[-300:]}"
    return [_tokens(answer.json(), model)]


def _tokens(body: dict[str, Any], model: str) -> Usage:
    usage = body["usage"]
    return model, usage["prompt_tokens"], usage.get("completion_tokens", 0)


def _stream(client: httpx.Client, number: int) -> Outcome:
    answer = client.post("/v1/chat/completions", json=_streamed(1 + number % TOKENS))
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    if answer.status_code != 200 or not lines or lines[-1] != "data: [DONE]":
        return f"{answer.status_code}: {answer.text[-300:]}"
    return [_tokens(json.loads(lines[-2].removeprefix("data: ")), CHAT)]


def _leave(client: httpx.Client, number: int) -> Outcome:
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


def _batch(client: httpx.Client, number: int) -> Outcome:
    """Submit a batch, and wait for its end; each line is to be answered once, whatever dies."""
    bodies: list[dict[str, Any]]
    if number % 2:
        endpoint, model = "/v1/embeddings", EMBEDDING
        bodies = [{"input": f"Hello {line}"} for line in range(LINES)]
    else:
        endpoint, model = "/v1/chat/completions", CHAT
        bodies = [
            {"messages": HELLO, "max_tokens": 1 + line % TOKENS, **ENDLESS} for line in range(LINES)
        ]
    content = "".join(
        json.dumps({"custom_id": str(line), "method": "POST", "url": endpoint, "body": body}) + "\n"
        for line, body in enumerate({"model": model, **body} for body in bodies)
    )
    upload = {"file": ("input.jsonl", content)}
    file = _surely(lambda: client.post("/v1/files", files=upload, data={"purpose": "batch"})).json()
    batch = _batch_of(client, {"input_file_id": file["id"], "endpoint": endpoint})
    path = f"/v1/batches/{batch}"
    eventually(
        lambda: _surely(lambda: client.get(path)).json()["status"] not in GOING_ON,
        BATCH_PATIENCE_S,
    )
    ended = _surely(lambda: client.get(path)).json()
    if ended["status"] != "completed":
        return f"a batch: {ended}"
    output = ended["output_file_id"]
    text = _surely(lambda: client.get(f"/v1/files/{output}/content")).text
    lines = [json.loads(line) for line in text.splitlines()]
    if sorted(line["custom_id"] for line in lines) != sorted(map(str, range(LINES))):
        return f"a batch of {LINES} lines has the answers {text}"
    return [_tokens(line["response"]["body"], model) for line in lines]


def _batch_of(client: httpx.Client, wanted: dict[str, str]) -> str:
    """Create a batch; where a kill cut the answer off, look first whether it is there."""
    found: list[str] = []

    def is_there() -> bool:
        batches = _surely(lambda: client.get("/v1/batches")).json()["data"]
        found.extend(b["id"] for b in batches if b["input_file_id"] == wanted["input_file_id"])
        if not found:
            body = {**wanted, "completion_window": "24h"}
            _answer(lambda: client.post("/v1/batches", json=body))
        return bool(found)

    eventually(is_there, BATCH_PATIENCE_S)
    return found[0]


def _surely(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """Ask until there is an answer; a kill cuts some off."""
    answers: list[httpx.Response | None] = []

    def is_answered() -> bool:
        answers.append(_answer(ask))
        return answers[-1] is not None

    eventually(is_answered, BATCH_PATIENCE_S)
    assert answers[-1] is not None
    return answers[-1]


def _answer(ask: Callable[[], httpx.Response]) -> httpx.Response | None:
    """Return the answer, or None where the server cannot give one now."""
    try:
        answer = ask()
    except httpx.HTTPError:
        return None
    assert answer.status_code == 200 or answer.status_code >= 500, answer.text
    return answer if answer.status_code == 200 else None


WAYS: dict[str, Callable[[httpx.Client, int], Outcome]] = {
    "whole": _whole,
    "stream": _stream,
    "embed": _embed,
    "leave": _leave,
    "batch": _batch,
}
