"""Batches on the cluster, through OpenAI's own client."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from typing import Any

import openai
import pytest
from ray._private import state

from deployments.batches import driver_name, start_driver
from omai_ray.settings import Settings
from tests.patience import eventually
from tests.ray.conftest import OWN_CHAT, OWN_EMBEDDING, Served

CHAT = "omai-gpt-4"
EMBEDDING = "text-embedding-ada-002"
PATIENCE_S = 200.0
ENDED = {"completed", "failed", "expired", "cancelled"}


def driver_pids(settings: Settings) -> list[int]:
    """Return the process of the actor that drives batches, none where it has ended."""
    name = driver_name(settings)
    return [
        int(actor["Pid"])
        for actor in state.actors().values()
        if actor["Name"] == name and actor["State"] == "ALIVE"
    ]


@pytest.fixture(scope="module")
def orphaned(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Return the settings of a driver whose application is not served."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("orphaned"))
    start_driver(settings, "not served")
    eventually(lambda: len(driver_pids(settings)) == 1)
    return settings


def worker_pids() -> set[int]:
    """Return the processes of the actors that answer units."""
    return {
        int(actor["Pid"])
        for actor in state.actors().values()
        if actor["ActorClassName"] == "BatchWorker" and actor["State"] == "ALIVE"
    }


def submit(client: openai.OpenAI, endpoint: Any, bodies: list[dict[str, Any]]) -> str:
    """Upload an input and create its batch; return its id."""
    lines = [
        {"custom_id": f"r{number}", "method": "POST", "url": endpoint, "body": body}
        for number, body in enumerate(bodies)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("input.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        metadata={"of": "a test"},
    )
    assert "validating" == batch.status
    return batch.id


def ended(client: openai.OpenAI, batch: str) -> Any:
    """Return a batch once it has ended."""
    eventually(lambda: client.batches.retrieve(batch).status in ENDED, PATIENCE_S)
    return client.batches.retrieve(batch)


def answers(client: openai.OpenAI, file: str | None) -> dict[str, Any]:
    """Return a file's lines by their custom_ids."""
    assert file is not None
    lines = [json.loads(line) for line in client.files.content(file).text.splitlines()]
    found = {line["custom_id"]: line["response"] for line in lines}
    assert len(lines) == len(found)
    return found


@pytest.mark.timeout(600)
def test_batches_are_answered_by_replicas_or_engines_of_their_own_and_survive_both_deaths(
    served: Served, orphaned: Settings
) -> None:
    """Chats and embeddings by either; a driver or a worker that is killed loses nothing."""
    account_id, key = served.create_key("pro")
    client = openai.OpenAI(api_key=key, base_url=f"{served.url}/v1")
    chat: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    texts = [f"text number {number}" for number in range(300)]

    def submit_chats(model: str) -> str:
        good, bad = {**chat, "model": model}, {**chat, "model": model, "temperature": 9}
        return submit(client, "/v1/chat/completions", [good] * 90 + [bad])

    def submit_texts(model: str) -> str:
        bodies = [{"model": model, "input": text} for text in texts]
        return submit(client, "/v1/embeddings", bodies)

    chats = {submit_chats(model): model for model in (CHAT, OWN_CHAT)}
    embeddings = {submit_texts(model): model for model in (EMBEDDING, OWN_EMBEDDING)}
    first = next(iter(chats))
    eventually(lambda: client.batches.retrieve(first).status != "validating", PATIENCE_S)
    (pid,) = driver_pids(served.settings)
    os.kill(pid, signal.SIGKILL)

    online = client.chat.completions.create(model=CHAT, **chat).choices[0].message.content
    for name, model in chats.items():
        batch = ended(client, name)
        assert ("completed", model) == (batch.status, batch.model)
        counts = batch.request_counts
        assert (91, 90, 1) == (counts.total, counts.completed, counts.failed)
        output = answers(client, batch.output_file_id)
        assert {f"r{number}" for number in range(90)} == set(output)
        said = {r["body"]["choices"][0]["message"]["content"] for r in output.values()}
        assert {online} == said
        assert 400 == answers(client, batch.error_file_id)["r90"]["status_code"]

    vectors = client.embeddings.create(model=EMBEDDING, input=texts[:20]).data

    def embedded(name: str) -> None:
        batch = ended(client, name)
        assert ("completed", 300) == (batch.status, batch.request_counts.completed)
        output = answers(client, batch.output_file_id)
        for number, vector in enumerate(vectors):
            (entry,) = output[f"r{number}"]["body"]["data"]
            assert entry["embedding"] == pytest.approx(vector.embedding, abs=1e-5)

    for name in embeddings:
        embedded(name)
    workers = worker_pids()
    assert 4 == len(workers)
    again = submit_texts(OWN_EMBEDDING)
    embedded(again)
    assert workers == worker_pids()  # they were there still
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    last = submit_texts(OWN_EMBEDDING)
    embedded(last)

    charged = Counter(record["batch_id"] for record in served.records(account_id))
    expected = dict.fromkeys(chats, 90) | dict.fromkeys((*embeddings, again, last), 300)
    assert expected == {name: charged[name] for name in expected}
    assert set(expected) <= {each.id for each in client.batches.list()}
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        client.batches.cancel(first)
    for pid in worker_pids():  # they would stay, and other tests need their room
        os.kill(pid, signal.SIGKILL)


def test_a_driver_ends_with_its_application(
    orphaned: Settings,
) -> None:
    """Nobody would end it otherwise: it is detached. It began before the other test."""
    eventually(lambda: not driver_pids(orphaned), 120.0)
