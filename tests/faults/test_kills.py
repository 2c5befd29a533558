"""Processes of the platform, as `omai-ray serve` runs them, killed or stopped under load."""

from __future__ import annotations

import json
import os
import signal

import httpx
import pytest

from tests.faults.platform import (
    CHAT,
    CHAT_REPLICA,
    CONTROLLER,
    ENDLESS,
    HELLO,
    INGRESS,
    PATIENCE_S,
    PROXY,
    SLACK,
    Platform,
    eventually,
)
from tests.faults.traffic import Traffic

pytestmark = pytest.mark.timeout(PATIENCE_S)

MIXED = ("whole", "stream", "embed")


def answers_more(traffic: Traffic, count: int) -> None:
    """Wait until so many more requests were answered."""
    before = traffic.answered.total()
    eventually(lambda: traffic.answered.total() >= before + count)


@pytest.mark.fault(1)
def test_a_killed_chat_replica_costs_its_streams_only(platform: Platform) -> None:
    """The stream that ran there ends with an error event, the next 30 requests are answered."""
    _, key = platform.served.create_key("wide")
    body = {"model": CHAT, "messages": HELLO, "max_tokens": 1900, "stream": True, **ENDLESS}
    events: list[str] = []
    with (
        platform.served.client(key) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                if len(events) == 20:
                    for pid in platform.pids(CHAT_REPLICA):
                        os.kill(pid, signal.SIGKILL)
    assert "[DONE]" not in events
    assert json.loads(events[-1])["error"]["type"] == "server_error"
    with platform.served.client(key) as client:
        short = {"model": CHAT, "messages": HELLO, "max_tokens": 4}
        statuses = [client.post("/v1/chat/completions", json=short).status_code for _ in range(30)]
    assert [200] * 30 == statuses
    eventually(lambda: len(platform.pids(CHAT_REPLICA)) == 2)


@pytest.mark.fault(3)
def test_a_killed_ingress_replica_fails_hardly_any_request(platform: Platform) -> None:
    """One of two, under load: at most one in a hundred, and another takes its place."""
    _, key = platform.served.create_key("wide")
    with Traffic(platform.served, key, *MIXED) as traffic:
        answers_more(traffic, 30)
        victim = platform.pids(INGRESS)[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(set(platform.pids(INGRESS)) - {victim}) == 2)
        answers_more(traffic, 400)
    asked = traffic.answered.total() + len(traffic.failures)
    assert len(traffic.failures) <= asked / 100


@pytest.mark.fault(4)
def test_a_killed_proxy_comes_back(platform: Platform) -> None:
    """Another process of Serve's takes its port, and answers as before."""
    _, key = platform.served.create_key("wide")
    (victim,) = platform.pids(PROXY)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in platform.pids(PROXY))
    eventually(platform.is_ready, patience_s=8.0 * SLACK)
    with platform.served.client(key) as client:
        short = {"model": CHAT, "messages": HELLO, "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=short).status_code == 200


@pytest.mark.fault(5)
def test_a_killed_controller_fails_no_request(platform: Platform) -> None:
    """Nor do its end and its return."""
    _, key = platform.served.create_key("wide")
    with Traffic(platform.served, key, *MIXED) as traffic:
        answers_more(traffic, 30)
        (victim,) = platform.pids(CONTROLLER)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: platform.pids(CONTROLLER) not in ([victim], []))
        answers_more(traffic, 100)
    assert [] == traffic.failures


@pytest.mark.fault(7)
def test_a_stopped_replica_is_taken_out_and_others_serve(platform: Platform) -> None:
    """It answers no health check: another process takes its place."""
    _, key = platform.served.create_key("wide")
    victim, other = platform.pids(CHAT_REPLICA)
    os.kill(victim, signal.SIGSTOP)
    short = {"model": CHAT, "messages": HELLO, "max_tokens": 4}
    answered = 0
    try:
        with platform.served.client(key) as client:
            while victim in platform.pids(CHAT_REPLICA):
                try:
                    answer = client.post("/v1/chat/completions", json=short)
                except httpx.TimeoutException:  # it had been given to the one that is stopped
                    continue
                answered += answer.status_code == 200
            assert answered >= 30
            eventually(lambda: len(platform.pids(CHAT_REPLICA)) == 2)
            assert other in platform.pids(CHAT_REPLICA)
            statuses = {
                client.post("/v1/chat/completions", json=short).status_code for _ in range(30)
            }
        assert {200} == statuses
    finally:
        if victim in platform.pids(CHAT_REPLICA):
            os.kill(victim, signal.SIGCONT)
