"""The process that knows the cluster's state is killed, and started again from its storage."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.platform import GCS, PATIENCE_S, Platform, eventually, running
from tests.faults.test_kills import MIXED, answers_more
from tests.faults.traffic import Traffic
from tests.ray.test_command import embed


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Return a list of processes, which end after the platform has."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.terminate()
        process.wait(60)


def kill_and_start_again(platform: Platform) -> subprocess.Popen[bytes]:
    """Kill the GCS; start it as it had been started, at the port where the others look for it."""
    cluster = json.loads((platform.served.settings.state_dir / "cluster.json").read_text())
    port = cluster["ray"].rpartition(":")[2]
    (victim,) = platform.pids(GCS)
    process = Path(f"/proc/{victim}")
    command = (process / "cmdline").read_text().rstrip("\0").split("\0")
    pairs = (pair.partition("=") for pair in (process / "environ").read_text().split("\0"))
    environment = {name: value for name, _, value in pairs if name}
    port_at = command.index("--gcs_server_port=0")
    command[port_at] = f"--gcs_server_port={port}"
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in platform.pids(GCS))
    return subprocess.Popen(command, env=environment)


def is_back(platform: Platform) -> bool:
    """Whether the GCS takes connections."""
    cluster = json.loads((platform.served.settings.state_dir / "cluster.json").read_text())
    host, _, port = cluster["ray"].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.fault(6)
@pytest.mark.timeout(PATIENCE_S)
def test_a_killed_gcs_goes_on_from_rocksdb_and_fails_no_request(
    tiny_models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: list[subprocess.Popen[bytes]],
) -> None:
    """Requests are answered while it is away; afterwards the cluster runs new tasks."""
    monkeypatch.setenv("RAY_gcs_storage", "rocksdb")
    monkeypatch.setenv("RAY_gcs_storage_path", str(tmp_path / "gcs"))
    with running(tmp_path, tiny_models) as platform:
        _, key = platform.served.create_key("wide")
        with Traffic(platform.served, key, *MIXED) as traffic:
            answers_more(traffic, 30)
            started.append(kill_and_start_again(platform))
            answers_more(traffic, 100)
            eventually(lambda: is_back(platform))
            state_dir = platform.served.settings.state_dir
            assert ["hello", "world"] == embed(tmp_path, state_dir, tiny_models[1])
            answers_more(traffic, 30)
    assert [] == traffic.failures
