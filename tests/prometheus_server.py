"""A real Prometheus of the tests' own, on loopback, with the configuration that is shipped."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.programs import free_port, require_program

SHIPPED = Path(__file__).parents[1] / "monitoring" / "prometheus"
_PATIENCE_S = 30.0


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer; fail where it is none."""
        answer = httpx.get(f"{self._url}/api/v1/{path}", params=parameters, timeout=30)
        content = answer.json()
        assert content["status"] == "success", content
        return content["data"]

    def labels_of_series(self) -> dict[str, set[str]]:
        """Return the names of all series that Ray's endpoint gave, and the labels they have."""
        found: dict[str, set[str]] = {}
        for series in self.ask("series", **{"match[]": '{__name__=~"ray_.*"}'}):
            found.setdefault(series["__name__"], set()).update(series)
        return found


@contextmanager
def run_prometheus(directory: Path, targets: str) -> Iterator[Prometheus]:
    """Run a server while the context lasts; skip where there is none (in CI: fail).

    targets: the file of what it scrapes.
    """
    require_program("prometheus", package="prometheus")
    shutil.copytree(SHIPPED, directory, dirs_exist_ok=True)
    config = directory / "prometheus.yml"
    config.write_text(config.read_text().replace(": 10s", ": 3s"))
    (directory / "targets").mkdir()
    (directory / "targets" / "ray.json").symlink_to(targets)
    port = free_port()
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log = directory / "log"
    with log.open("w") as output:
        server = subprocess.Popen(["prometheus", *arguments], stdout=output, stderr=output)
    try:
        _wait_until_ready(server, f"http://127.0.0.1:{port}/-/ready", log)
        yield Prometheus(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(timeout=_PATIENCE_S)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
