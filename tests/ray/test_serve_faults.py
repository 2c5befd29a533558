"""Processes that are killed while they work: what was answered is kept, all else serves on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import httpx
import pytest
from ray._private import state

from omai_ray.identity.registry import Registry
from omai_ray.ledger import UsageLedger, UsageTotals
from tests.patience import eventually
from tests.ray.conftest import Served
from tests.ray.test_serve import CHAT, EMBEDDING


def pids(name: str) -> list[int]:
    """Return the processes of actors by a part of their names; a replica's has #its deployment#."""
    actors = state.actors().values()
    return [a["Pid"] for a in actors if name in (a["Name"] or "") and a["State"] == "ALIVE"]


def totals(served: Served, account_id: str) -> UsageTotals:
    """Return what the ledger says of an account."""

    async def read(registry: Registry) -> UsageTotals:
        return await UsageLedger(registry.store).totals(account_id)

    return served.with_registry(read)


@pytest.mark.fault(1)
def test_a_killed_chat_replica_ends_its_stream_with_an_error(served: Served) -> None:
    """No [DONE]; the tokens that the client got are in the ledger, the next requests answered."""
    account_id, key = served.create_key("pro")
    body = CHAT | {"stream": True, "max_tokens": 1900, "logit_bias": {"70": 100}, "logprobs": True}
    events = []
    with (
        served.client(key) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                if len(events) == 20:
                    (pid,) = pids("#model-omai-gpt-4#")
                    os.kill(pid, signal.SIGKILL)
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    eventually(lambda: totals(served, account_id).requests == 1)
    choices = [choice for event in map(json.loads, events[:-1]) for choice in event["choices"]]
    tokens = sum(len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"])
    assert 0 < tokens < 1900
    assert tokens == totals(served, account_id).completion_tokens
    with served.client(key) as client:
        answers = [client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 4})
                   for _ in range(30)]  # fmt: skip
    assert {200} == {answer.status_code for answer in answers}


@pytest.mark.fault(3)
def test_a_killed_ingress_replica_loses_no_record(served: Served) -> None:
    """Every answer that a client has is in the ledger, to the token; the other replica goes on."""
    account_id, key = served.create_key("enterprise")
    answered: list[int] = []
    failed: list[object] = []
    stop = threading.Event()

    def call() -> None:
        with served.client(key) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/v1/embeddings", json=EMBEDDING)
                except httpx.HTTPError as error:
                    failed.append(error)
                    continue
                if answer.status_code == 200:
                    answered.append(answer.json()["usage"]["total_tokens"])
                else:
                    failed.append(answer.status_code)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    victims = pids("#ingress#")
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    before = len(answered)
    eventually(lambda: len(answered) >= before + 200)
    stop.set()
    for thread in threads:
        thread.join()

    kept = totals(served, account_id)
    lost = kept.requests - len(answered)  # recorded, and killed before the answer went out
    assert 0 <= lost <= len(failed)
    assert kept.prompt_tokens == sum(answered) + lost * answered[0]
    eventually(lambda: len(pids("#ingress#")) == 2)


@pytest.mark.fault(12)
def test_clients_that_vanish_leave_nothing_behind(served: Served) -> None:
    """Each stream is cancelled and recorded once; those who come next are answered."""
    account_id, key = served.create_key("enterprise")
    body = CHAT | {"stream": True, "max_tokens": 1900, "logit_bias": {"70": 100}}
    clients = 30

    def vanish() -> None:
        with (
            served.client(key) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            assert next(response.iter_lines()).startswith("data: ")

    threads = [threading.Thread(target=vanish) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: totals(served, account_id).requests == clients)
    assert totals(served, account_id).completion_tokens < 1900 * clients / 2
    with served.client(key) as client:
        answer = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 4})
    assert answer.status_code == 200
    assert totals(served, account_id).requests == clients + 1
