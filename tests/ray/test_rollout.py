"""Replicas that are exchanged under load, and one that is stuck."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

import deployments.app
from deployments.app import build
from deployments.chat import ChatReplica
from omai_ray.catalog import ModelSpec
from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.settings import BatchSettings, IngressSettings
from tests.callers import Callers
from tests.patience import eventually
from tests.ray.conftest import Served
from tests.ray.test_serve_faults import pids

APP, PREFIX, MODEL = "rollout", "/rollout", "rolling"
CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "logit_bias": {"70": 100},
}


class WedgingReplica(ChatReplica):
    """A chat replica whose engine never ends the step of the request that says so."""

    async def answer(self, job: ChatJob, request_id: str | None) -> list[ChatDelta]:
        """Return the complete choices."""
        if job.stop == ["wedge"]:
            self._engine._runner.run = lambda _: time.sleep(3600)  # type: ignore[attr-defined]
        return await super().answer(job, request_id)


@contextmanager
def application(served: Served, **model: Any) -> Iterator[Callable[..., None]]:
    """Serve a second application with one model; what is yielded deploys it with other settings."""
    source = served.settings.models[0].source

    def deploy(**changed: Any) -> None:
        fields: dict[str, Any] = {"name": MODEL, "task": "chat", "source": source, "num_cpus": 0.1}
        spec = ModelSpec(**(fields | model | changed))
        settings = served.settings.model_copy(
            update={
                "models": (spec,),
                "ingress": IngressSettings(num_cpus=0.1),
                "batches": BatchSettings(),
                "drain_s": 120.0,  # longer than any stream takes, on a slow machine too
            }
        )
        serve.run(build(settings), name=APP, route_prefix=PREFIX)

    deploy()
    try:
        yield deploy
    finally:
        serve.delete(APP)


class Load(Callers):
    """Clients that ask again and again, whole and streamed; failures: what did not come well."""

    def __init__(self, served: Served, key: str) -> None:
        super().__init__(*(partial(self._ask, stream) for stream in (False, True, True)))
        self._served = served
        self._key = key
        self.answered = 0
        self.failures: list[str] = []

    def _ask(self, stream: bool) -> None:
        body = CHAT | {"max_tokens": 64, "stream": stream}
        with self._served.client(self._key) as client:
            while not self._stop.is_set():
                answer = client.post(f"{PREFIX}/v1/chat/completions", json=body)
                whole = answer.text.endswith("data: [DONE]\n\n") if stream else True
                if answer.status_code != 200 or not whole:
                    self.failures.append(f"{answer.status_code}: {answer.text[-300:]}")
                else:
                    self.answered += 1


def test_a_changed_model_is_rolled_out_without_a_failed_request(served: Served) -> None:
    """Streams that had begun end as they would have; the old processes are gone then."""
    _, key = served.create_key()
    with application(served) as deploy, Load(served, key) as load:
        eventually(lambda: load.answered > 3)
        old = pids(f"#model-{MODEL}#"), pids("#ingress#")
        with (
            served.client(key) as client,
            client.stream(
                "POST",
                f"{PREFIX}/v1/chat/completions",
                json=CHAT | {"max_tokens": 600, "stream": True},
            ) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            deploy(max_running_requests=16)
            events = [line for line in lines if line.startswith("data: ")]
        eventually(lambda: not set(old[0]) & set(pids(f"#model-{MODEL}#")))
        answered = load.answered
        eventually(lambda: load.answered > answered + 3)
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert load.failures == []


def test_a_wedged_engine_is_replaced(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever waits is told; a new process answers those who come next."""
    monkeypatch.setattr(deployments.app, "ChatReplica", WedgingReplica)
    monkeypatch.setattr(deployments.app, "HEALTH_PERIOD_S", 0.5)
    _, key = served.create_key()
    body = CHAT | {"max_tokens": 4}
    path = f"{PREFIX}/v1/chat/completions"
    with application(served, step_timeout_s=3), served.client(key) as client:
        (old,) = pids(f"#model-{MODEL}#")
        assert client.post(path, json=body).status_code == 200
        stuck = client.post(path, json=body | {"stop": "wedge"})
        assert stuck.status_code == 500
        assert stuck.json()["error"]["type"] == "server_error"

        def answers() -> bool:
            try:
                return client.post(path, json=body).status_code == 200
            except httpx.TimeoutException:
                return False

        eventually(answers)
        assert pids(f"#model-{MODEL}#") != [old]
