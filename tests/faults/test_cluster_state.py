"""The process that knows the cluster's state is killed, and started again from its storage."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.faults.platform import CONTROLLER, GCS, Platform, eventually, running
from tests.faults.test_kills import MIXED, answers_more
from tests.faults.traffic import Traffic
from tests.ray.test_command import embed


def start_again(pid: int) -> subprocess.Popen[bytes]:
    """Kill a process, and start it as it had been started."""
    process = Path(f"/proc/{pid}")
    command = (process / "cmdline").read_bytes().split(b"\0")[:-1]
    pairs = (pair.partition(b"=") for pair in (process / "environ").read_bytes().split(b"\0"))
    environment = {name: value for name, _, value in pairs if name}
    directory = (process / "cwd").readlink()
    os.kill(pid, signal.SIGKILL)
    return subprocess.Popen(
        command,
        env=environment,
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.fault(6)
@pytest.mark.timeout(600)
def test_a_killed_gcs_goes_on_from_rocksdb_and_fails_no_request(
    tiny_models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are answered while it is away; afterwards the cluster runs new tasks."""
    monkeypatch.setenv("RAY_gcs_storage", "rocksdb")
    monkeypatch.setenv("RAY_gcs_storage_path", str(tmp_path / "gcs"))
    with running(tmp_path, tiny_models) as platform:
        _, key = platform.served.create_key("wide")
        with Traffic(platform.served, key, *MIXED) as traffic:
            answers_more(traffic, 30)
            again = kill_gcs(platform, traffic)
            try:
                answers_more(traffic, 100)
                state_dir = platform.served.settings.state_dir
                assert ["hello", "world"] == embed(tmp_path, state_dir, tiny_models[1])
            finally:
                again.terminate()
        again.wait(60)
    assert [] == traffic.failures


def kill_gcs(platform: Platform, traffic: Traffic) -> subprocess.Popen[bytes]:
    """Kill it, and have some requests answered without it; return what was started instead."""
    (victim,) = platform.pids(GCS)
    assert platform.pids(CONTROLLER)
    again = start_again(victim)
    eventually(lambda: victim not in platform.pids(GCS))
    return again
