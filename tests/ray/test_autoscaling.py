"""Models that scale, on a real Ray: from zero and back, up and down, and none wakes another."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve
from ray.serve._private.common import ReplicaState
from ray.serve.config import ProxyLocation

import deployments.app
from deployments.app import build
from deployments.chat import ChatReplica
from deployments.names import deployment_name
from omai_ray.catalog import ModelSpec, Replicas
from omai_ray.settings import Settings
from tests.programs import free_port
from tests.ray.conftest import INGRESS, Served

PATIENCE_S = 240.0  # starting processes takes long on a busy machine
pytestmark = pytest.mark.timeout(600)
SLEEPER, OTHER, BUSY = "sleeper", "other-sleeper", "busy"
STEP_S = 0.02


class SlowReplica(ChatReplica):
    """A chat replica whose steps take as long as a large model's, and no CPU meanwhile."""

    async def __init__(self, *given: Any) -> None:  # type: ignore[misc] # as its base
        await super().__init__(*given)
        runner = self._engine._runner  # type: ignore[attr-defined]
        run = runner.run

        def run_slowly(pieces: Any) -> Any:
            time.sleep(STEP_S)
            return run(pieces)

        runner.run = run_slowly


def chat_model(name: str, source: Path, replicas: Replicas) -> ModelSpec:
    """Return a small chat model that is full with two requests."""
    return ModelSpec(
        name=name,
        task="chat",
        source=str(source),
        num_cpus=0.2,
        max_running_requests=2,
        replicas=replicas,
    )


@pytest.fixture(scope="module")
def scaled(
    ray_cluster: None, tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Serve two models that sleep, and one that may have three replicas."""
    chat, _ = tiny_models
    state_dir = tmp_path_factory.mktemp("state")
    asleep = Replicas(min=0, initial=0, max=1, scale_to_zero_s=2)
    settings = Settings(
        port=free_port(),
        state_dir=state_dir,
        log_file=state_dir / "omai.log",
        ingress=INGRESS.model_copy(update={"replicas": 1, "keep_alive_s": 1}),
        models=(
            chat_model(SLEEPER, chat, asleep),
            chat_model(OTHER, chat, asleep),
            chat_model(BUSY, chat, Replicas(min=1, max=3, target_wait_s=0.5, scale_down_s=3)),
        ),
    )
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options={"host": "127.0.0.1", "port": settings.port},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployments.app, "ChatReplica", SlowReplica)
        serve.run(build(settings), name="scaled")
    yield Served(f"http://127.0.0.1:{settings.port}", settings)
    serve.shutdown()  # type: ignore[no-untyped-call]


def running(model: str) -> int:
    """Return how many replicas of a model serve."""
    deployment = serve.status().applications["scaled"].deployments[deployment_name(model)]
    return deployment.replica_states.get(ReplicaState.RUNNING, 0)


def wait_for(model: str, replicas: int) -> None:
    """Wait until so many replicas of a model serve."""
    deadline = time.monotonic() + PATIENCE_S
    while running(model) != replicas:
        assert time.monotonic() < deadline, f"{model} has {running(model)} replicas"
        time.sleep(0.1)


def test_a_model_sleeps_wakes_for_its_own_request_and_sleeps_again(scaled: Served) -> None:
    """0, 1, 0: its stream says that it is alive until the answer comes; the other sleeps on."""
    _, key = scaled.create_key()
    wait_for(SLEEPER, 0)
    body = {"model": SLEEPER, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    with scaled.client(key) as client:
        stream = client.post(
            "/v1/chat/completions", json=body | {"stream": True}, timeout=PATIENCE_S
        )
    assert stream.status_code == 200
    lines = [line for line in stream.text.splitlines() if line]
    assert lines[0].startswith(":"), "nothing was sent while the model woke"
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert all("error" not in json.loads(event) for event in events[:-1])
    assert running(OTHER) == 0
    wait_for(SLEEPER, 0)


def test_a_model_grows_under_load_and_shrinks_after_it(scaled: Served) -> None:
    """1, 3, 1, and no request fails on the way."""
    _, key = scaled.create_key()
    body = {
        "model": BUSY,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 60,
        "logit_bias": {"70": 100},
    }
    statuses: list[int] = []
    stop = threading.Event()

    def call() -> None:
        with httpx.Client(
            base_url=scaled.url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S
        ) as client:
            while not stop.is_set():
                statuses.append(client.post("/v1/chat/completions", json=body).status_code)

    assert running(BUSY) == 1
    # So many wait that one replica would be at them for longer than others take to start.
    threads = [threading.Thread(target=call) for _ in range(72)]
    for thread in threads:
        thread.start()
    try:
        wait_for(BUSY, 3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    wait_for(BUSY, 1)
    with scaled.client(key) as client:
        assert client.post("/v1/chat/completions", json=body | {"max_tokens": 4}).status_code == 200
