"""The catalog changes under load: models that stay the same run on, and no request fails."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.callers import Callers
from tests.ray.test_command import address, create_key, serving, told

CHAT = {"model": "omai-gpt-4", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


class Load(Callers):
    """Somebody who keeps asking one model, and notes what is not answered well."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(self._ask)
        self.answered = 0
        self.failures: list[str] = []
        self._client = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._client.close()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                response = self._client.post("/v1/chat/completions", json=CHAT)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                continue
            if response.status_code == 200:
                self.answered += 1
            else:
                self.failures.append(response.text)


def write(config: Path, models: tuple[Path, Path], *embedding_models: str, **more: Any) -> None:
    """Write settings with the chat model and some embedding models."""
    chat, embedding = models
    catalog = [{"name": "omai-gpt-4", "task": "chat", "source": str(chat), "num_cpus": 0.2}]
    catalog += [
        {"name": name, "task": "embedding", "source": str(embedding), "num_cpus": 0.2}
        for name in embedding_models
    ]
    values = {"models": catalog, "ingress": {"num_cpus": 0.1}, "dashboard": False, **more}
    config.write_text(yaml.safe_dump(values))


def replica_processes(state: Path, model: str) -> set[int]:
    """Return the processes of a model's replicas that the Ray of a server has started."""
    ray_address = json.loads((state / "cluster.json").read_text())["ray"]
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_text()
            if not line.startswith("ray::") or f"model-{model}" not in line:
                continue
            parent = re.findall(r"PPid:\s+(\d+)", (process / "status").read_text())[0]
            if ray_address in Path("/proc", parent, "cmdline").read_text():
                found.add(int(process.name))
        except OSError:  # it has ended
            continue
    return found


def reload(process: subprocess.Popen[str]) -> str:
    """Have a server read its settings again; return what it says when it has."""
    assert process.stdout is not None
    process.send_signal(signal.SIGHUP)
    return process.stdout.readline().strip()


def test_models_come_and_go_while_another_answers(
    tmp_path: Path, tiny_models: tuple[Path, Path]
) -> None:
    """The model that stays keeps its process; what cannot be changed so is refused by name."""
    config, state = tmp_path / "platform.yaml", tmp_path / "state"
    write(config, tiny_models, "one")
    with serving(state, None, "--config", str(config)) as process:
        url, key = address(process), create_key(state)
        before = replica_processes(state, "omai-gpt-4")
        assert before
        with Load(url, key) as load, httpx.Client(base_url=url, timeout=120) as client:
            client.headers["Authorization"] = f"Bearer {key}"

            def status(model: str) -> int:
                body = {"model": model, "input": "hello"}
                return client.post("/v1/embeddings", json=body).status_code

            assert [status("one"), status("two")] == [200, 404]
            write(config, tiny_models, "one", "two")
            assert reload(process) == "reloaded: omai-gpt-4, one, two"
            assert [status("one"), status("two")] == [200, 200]
            write(config, tiny_models, "two", aliases={"uno": "two"})
            assert reload(process) == "reloaded: omai-gpt-4, two"
            assert [status("one"), status("two"), status("uno")] == [404, 200, 200]
            write(config, tiny_models, "two", proxy="haproxy")
            process.send_signal(signal.SIGHUP)
            while "not reloaded: " not in told(state).read_text():
                assert process.poll() is None
                time.sleep(0.1)
            assert "proxy: changed; stop and start for that" in told(state).read_text()
            assert status("two") == 200
        assert load.failures == []
        assert load.answered > 0
        assert before == replica_processes(state, "omai-gpt-4")
