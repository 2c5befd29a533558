from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from ray.serve import Application

from deployments.app import app
from deployments.detached import NAMESPACE
from deployments.limiter import actor_name
from omai_ray.errors import ConfigError
from tests.patience import eventually
from tests.ray.conftest import Served

CHAT = {"model": "omai-gpt-4", "messages": [{"role": "user", "content": "Hello"}]}
EMBEDDING = {"model": "text-embedding-ada-002", "input": "Hello"}


def test_the_references_requests_are_answered_over_http(served: Served) -> None:
    """Chat, a stream and embeddings travel through proxy, ingress and replicas."""
    account_id, key = served.create_key()
    with served.client(key) as client:
        chat = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 8, "seed": 3})
        stream = client.post(
            "/v1/chat/completions", json=CHAT | {"max_tokens": 8, "seed": 3, "stream": True}
        )
        vectors = client.post("/v1/embeddings", json=EMBEDDING)
    assert [chat.status_code, stream.status_code, vectors.status_code] == [200, 200, 200]
    *events, done = stream.text.strip().split("\n\n")
    assert done == "data: [DONE]"
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == chat.json()["choices"][0]["message"]["content"]
    assert len(vectors.json()["data"][0]["embedding"]) == 32
    assert served.requests_recorded(account_id) == 3


def test_a_tier_holds_across_ingress_replicas(served: Served) -> None:
    """All ingress replicas take from one bucket: 60 at once, and what refilled meanwhile."""
    _, key = served.create_key("basic")
    with served.client(key) as client, ThreadPoolExecutor(16) as pool:
        begun = time.monotonic()
        answers = list(pool.map(lambda _: client.post("/v1/embeddings", json=EMBEDDING), range(90)))
        while all(
            answer.status_code == 200 for answer in answers
        ):  # a slow machine lets the bucket refill meanwhile
            answers += pool.map(lambda _: client.post("/v1/embeddings", json=EMBEDDING), range(30))
        elapsed_s = time.monotonic() - begun
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert 60 <= statuses.count(200) <= 60 + elapsed_s + 1
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["x-ratelimit-limit-requests"] == "60"
    assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.fault(2)
def test_the_limiters_death_ends_no_service_and_makes_no_quota(served: Served) -> None:
    """Killed again and again under load: no failure, and hardly more than the tier admits."""
    account_id, key = served.create_key("basic")
    statuses: list[int] = []
    stop = threading.Event()

    def call() -> None:
        with served.client(key) as client:
            while not stop.is_set():
                statuses.append(client.post("/v1/embeddings", json=EMBEDDING).status_code)

    begun = time.monotonic()
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: 429 in statuses)  # the minute's worth is spent
    for _ in range(3):
        time.sleep(2.0)
        ray.kill(ray.get_actor(actor_name(0), namespace=NAMESPACE), no_restart=False)
    time.sleep(2.0)
    stop.set()
    for thread in threads:
        thread.join()
    elapsed_s = time.monotonic() - begun

    assert set(statuses) == {200, 429}
    assert statuses.count(200) <= (60 + elapsed_s) * 1.1 + 1
    assert statuses.count(200) == served.requests_recorded(account_id)
    log = (served.settings.state_dir / "omai.log").read_text()
    assert "decisions are made in this process" in log


def test_a_revoked_key_stops_working_on_every_replica(served: Served) -> None:
    """A key works at once when it is made, and not for long after it is revoked."""
    _, key = served.create_key()
    with served.client(key) as client:
        assert [client.get("/v1/models").status_code for _ in range(8)] == [200] * 8
        served.revoke(key)
        eventually(lambda: [client.get("/v1/models").status_code for _ in range(8)] == [401] * 8)


def test_a_client_that_leaves_is_accounted_for(served: Served) -> None:
    """A stream that is dropped is cancelled in the replica, and its usage is recorded."""
    account_id, key = served.create_key()
    body = CHAT | {"stream": True, "max_tokens": 1900, "logit_bias": {"70": 100}}
    with (
        served.client(key) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert next(response.iter_lines()).startswith("data: ")
    eventually(lambda: served.requests_recorded(account_id) == 1)
    lines = (served.settings.state_dir / "omai.log").read_text().splitlines()
    entry = next(e for e in map(json.loads, lines) if e.get("account") == account_id)
    assert 0 < entry["completion_tokens"] < 1900


def test_a_client_that_leaves_a_whole_answer_pays_for_what_was_generated(served: Served) -> None:
    """To the token, in all choices; the replica generates no more, and the rest is given back."""
    account_id, key = served.create_key("basic")
    limit, n, longest = 40_000, 20, 1900
    body = CHAT | {"max_tokens": longest, "n": n, "logit_bias": {"70": 100}}
    model = serve.get_deployment_handle("model-omai-gpt-4", "omai")

    def generated(request_id: str) -> int:
        (answer,) = model.broadcast("so_far", request_id, end=False).results()
        return sum(choice.tokens for choice in answer)

    def recorded(requests: int) -> bool:
        return served.requests_recorded(account_id) == requests

    with served.client(key) as client:
        for attempt in range(1, 6):  # until the client has stayed for long enough
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body, timeout=2.0**attempt)
            eventually(partial(recorded, attempt))
            record = served.records(account_id)[-1]
            if record["completion_tokens"]:
                break
        assert generated(record["request_id"]) == record["completion_tokens"]
        assert 0 < record["completion_tokens"] < n * longest
        assert 0 < record["first_token_ms"] <= record["duration_ms"]
        assert (record["status"], record["finish_reason"]) == (499, None)
        last = client.post("/v1/embeddings", json=EMBEDDING)
        assert generated(record["request_id"]) == record["completion_tokens"]
    spent = record["prompt_tokens"] + record["completion_tokens"]
    used = last.json()["usage"]["total_tokens"]
    left = int(last.headers["x-ratelimit-remaining-tokens"])
    assert limit - spent - used <= left <= limit


def test_a_request_id_comes_back_once(served: Served) -> None:
    """The proxy echoes the client's id, and the application does not add it again."""
    _, key = served.create_key()
    with served.client(key) as client:
        own = client.get("/v1/models", headers={"x-request-id": "mine-1"})
        made = client.get("/v1/models")
    assert own.headers.get_list("x-request-id") == ["mine-1"]
    assert len(made.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_needs_no_key(served: Served, path: str) -> None:
    """Load balancers have none."""
    assert httpx.get(served.url + path).status_code == 200


def test_serve_run_builds_the_same_graph_from_its_arguments(tmp_path: Path) -> None:
    """`serve run deployments.app:app config=FILE` reads settings, and refuses what they refuse."""
    config = tmp_path / "platform.yaml"
    config.write_text("ingress: {replicas: 2}\n", encoding="utf-8")
    assert isinstance(app({"config": str(config), "state_dir": str(tmp_path)}), Application)
    with pytest.raises(ConfigError, match="no_such_key"):
        app({"no_such_key": "1"})
