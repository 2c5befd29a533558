"""Which of several replicas is asked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from ray import serve

from deployments.app import build
from omai_ray.catalog import ModelSpec, Replicas
from omai_ray.settings import BatchSettings
from tests.ray.conftest import Served

PREFIX = "/routing"
TWO = Replicas(min=2, max=2)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    """Serve models of two replicas each behind two ingress replicas; return a client of theirs."""
    chat, embedding, *_ = served.settings.models
    models = tuple(
        ModelSpec(name=name, task=spec.task, source=spec.source, num_cpus=0.1, replicas=TWO)
        for name, spec in (("chat", chat), ("embedding", embedding))
    )
    serve.run(
        build(served.settings.model_copy(update={"models": models, "batches": BatchSettings()})),
        name="routing",
        route_prefix=PREFIX,
    )
    _, key = served.create_key()
    with served.client(key) as client:
        yield client
    serve.delete("routing")


def test_the_turns_of_a_conversation_meet_what_they_left(client: httpx.Client) -> None:
    """Whichever ingress replica takes them. By chance half would, and 19 of 24 hardly ever.

    Not all have to: Serve passes over a replica that does not tell its load within 0.1 s.
    """
    met = []
    for number in range(8):
        messages = [{"role": "user", "content": f"{number}: " + "Tell me of the sea. " * 4}]
        before = 0
        for turn in range(4):
            # A connection of its own, so that the proxy chooses an ingress replica anew.
            answer = httpx.post(
                f"{str(client.base_url).rstrip('/')}{PREFIX}/v1/chat/completions",
                json={"model": "chat", "messages": messages, "max_tokens": 4},
                headers={"Authorization": client.headers["Authorization"]},
                timeout=30,
            ).json()
            usage = answer["usage"]
            if turn:
                met.append(usage["prompt_tokens_details"]["cached_tokens"] > 0.8 * before)
            before = usage["prompt_tokens"]
            messages += [
                {"role": "assistant", "content": answer["choices"][0]["message"]["content"]},
                {"role": "user", "content": "Go on."},
            ]
    assert len(met) == 24
    assert sum(met) >= 19


def test_the_prompts_of_one_request_are_all_answered(client: httpx.Client) -> None:
    """They are calls that Serve gives one id."""
    prompts = [f"Number {number} of some prompts." for number in range(12)]
    body: dict[str, Any] = {"model": "chat", "prompt": prompts, "max_tokens": 3}
    answer = client.post(f"{PREFIX}/v1/completions", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 12


def test_embeddings_are_answered_whatever_their_size(client: httpx.Client) -> None:
    """Sizes are what the choice goes by."""

    def embed(words: int) -> int:
        body = {"model": "embedding", "input": "word " * words}
        return client.post(f"{PREFIX}/v1/embeddings", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(embed, [1, 20] * 20)) == {200}
