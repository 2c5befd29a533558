"""`omai-ray serve` as a program of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.programs import free_port

COMMAND = str(Path(sys.executable).parent / "omai-ray")
START_S = 600.0
STOP_S = 15.0


@contextmanager
def serving(
    state_dir: Path,
    models: tuple[Path, Path] | None,
    *arguments: str,
    dashboard: bool = False,
    longest_s: float = START_S,
) -> Iterator[subprocess.Popen[str]]:
    """Start a server on a free port; kill it at the end, or after longest_s, where it still runs.

    models: of what the built-in ones are made instead; arguments: further ones.
    """
    sources: tuple[str, ...] = ()
    if models is not None:
        chat, embedding = map(str, models)
        sources = ("--chat-model", chat, "--embedding-model", embedding)
    with told(state_dir).open("w") as stderr:
        process = subprocess.Popen(
            [
                *(COMMAND, "serve", "--port", str(free_port()), "--state-dir", str(state_dir)),
                *sources,
                *("--alias", "gpt-4o-mini=omai-gpt-4"),
                *(() if dashboard else ("--no-dashboard",)),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    watchdog = threading.Timer(longest_s, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def told(state_dir: Path) -> Path:
    """Return where a server's stderr goes."""
    return state_dir.with_suffix(".stderr")


def administers(url: str, state_dir: Path) -> bool:
    """Whether the administrator that one server's first start told of may use another."""
    lines = told(state_dir).read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("administrator: ")]
    name, password = re.findall(r": (\w+)", line)
    answer = httpx.get(f"{url}/v1/admin/audit", auth=(name, password), timeout=30)
    return answer.status_code == 200


def address(process: subprocess.Popen[str]) -> str:
    """Wait for the ready line; return the address in it."""
    assert process.stdout is not None
    word, _, url = process.stdout.readline().strip().partition(" ")
    assert word == "ready"
    return url


def create_key(state_dir: Path) -> str:
    """Create a key by the command."""
    arguments = ["keys", "create", "--tier", "pro", "--state-dir", str(state_dir), "--quiet"]
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def status(url: str, key: str) -> int:
    """Return what a key gets."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{url}/v1/models/gpt-4o-mini", headers=headers, timeout=30).status_code


def embed(directory: Path, state_dir: Path, model: Path) -> list[str]:
    """Embed two rows on a running server's Ray; return the texts that were written."""
    corpus, vectors = directory / "corpus.parquet", directory / "vectors"
    pq.write_table(pa.table({"text": ["hello", "world"]}), corpus)
    arguments = [corpus, vectors, "--column", "text", "--model", model, "--address", state_dir]
    done = subprocess.run(
        [COMMAND, "embed", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    texts: list[str] = pq.read_table(vectors / "corpus.parquet")["text"].to_pylist()
    return texts


@pytest.mark.timeout(START_S)  # two servers and a job of two models, on whatever CPUs there are
def test_two_servers_run_side_by_side_and_end_at_sigint(
    tmp_path: Path, tiny_models: tuple[Path, Path]
) -> None:
    """Each has its own accounts and its own Ray; each ends cleanly, within 15 seconds."""
    one, two = tmp_path / "one", tmp_path / "two"
    config = tmp_path / "chat.yaml"  # the second has no model that nobody asks
    catalog = [{"name": "omai-gpt-4", "task": "chat", "source": str(tiny_models[0])}]
    config.write_text(json.dumps({"models": catalog}))
    with (
        serving(one, tiny_models) as first,
        serving(two, None, "--config", str(config)) as second,
    ):
        urls = [address(first), address(second)]
        keys = [create_key(one), create_key(two)]
        assert [[status(url, key) for key in keys] for url in urls] == [[200, 401], [401, 200]]
        assert [administers(url, one) for url in urls] == [True, False]
        assert embed(tmp_path, one, tiny_models[1]) == ["hello", "world"]
        cluster = json.loads((one / "cluster.json").read_text())
        assert Path(cluster["token_file"]).stat().st_mode & 0o777 == 0o600
        for process in (first, second):
            process.send_signal(signal.SIGINT)
        assert [process.wait(STOP_S) for process in (first, second)] == [0, 0]
        assert not (one / "cluster.json").exists()
        lines = (one / "omai.log").read_text(encoding="utf-8").splitlines()
        log = [json.loads(line)["message"] for line in lines]
        assert [
            f"serving omai-gpt-4, text-embedding-ada-002 at {urls[0]}",
            "stopping",
            "stopped",
        ] == [line for line in log if line.startswith(("serving", "stop"))]
        assert "stopping: requests have up to 30 s" in told(one).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat-model", "./nowhere"], "no directory ./nowhere"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: No such file or directory"),
        (["--alias", "a=b"], "'a' points at 'b', which is not a served model"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
    ],
)
def test_a_start_that_cannot_be_says_why_in_one_line(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    """The message names the value, the status is 1, and there is no traceback."""
    done = subprocess.run(
        [COMMAND, "serve", "--state-dir", str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.startswith("omai-ray: ")
    assert done.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    """The message names the port, and says what to do."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [COMMAND, "serve", "--port", str(port), "--state-dir", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "--port" in done.stderr
