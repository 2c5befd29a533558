"""What Serve's proxy lets in: headers, bodies and paths as hostile clients send them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import httpx
import pytest
from ray.serve._private.constants import SERVE_PROXY_NAME

from tests.ray.conftest import INGRESS, Served
from tests.ray.test_serve_faults import pids

CHAT = {"model": "omai-gpt-4", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
MIB = 2**20
RSS_LIMIT = 32 * MIB


def rss_bytes() -> int:
    """Return the memory of Serve's proxy and ingress replicas."""
    processes = pids(SERVE_PROXY_NAME), pids("#ingress#")
    assert all(processes)
    total = 0
    for process in chain(*processes):
        status = Path(f"/proc/{process}/status").read_text()
        total += int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024
    return total


def endless() -> Iterator[bytes]:
    """Yield pieces without an end that anybody should wait for."""
    for _ in range(2048):
        yield b" " * 64 * 1024


@pytest.mark.fault(14)
def test_a_body_of_50_mb_is_refused_unread(served: Served) -> None:
    """By its declared length: 413 in the envelope, and hardly any memory."""
    _, key = served.create_key()
    before = rss_bytes()
    with served.client(key) as client:
        response = client.post(
            "/v1/embeddings", content=b" " * 50 * MIB, headers={"content-type": "application/json"}
        )
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"
    assert str(INGRESS.max_body_bytes) in response.json()["error"]["message"]
    assert rss_bytes() - before < RSS_LIMIT


@pytest.mark.fault(14)
def test_a_body_without_a_length_is_refused_at_the_limit(served: Served) -> None:
    """An unbounded chunked body is cut off; its connection ends."""
    _, key = served.create_key()
    before = rss_bytes()
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    address = ("127.0.0.1", served.settings.port)
    sent, answer = 0, b""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):
            for piece in endless():
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += len(piece)
        # What was sent last may have made the server's side reset the connection.
        with contextlib.suppress(OSError):
            answer = connection.recv(65536)
    assert sent < 128 * MIB
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    assert rss_bytes() - before < RSS_LIMIT
    with served.client(key) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_only_uploads_may_be_larger_than_other_bodies(served: Served) -> None:
    """Through the proxy into storage and back."""
    _, key = served.create_key()
    content = bytes(range(256)) * (12 * MIB // 256)
    assert len(content) > INGRESS.max_body_bytes
    with served.client(key) as client:
        form, parts = {"purpose": "user_data"}, {"file": ("a", content)}
        made = client.post("/v1/files", data=form, files=parts).json()
        assert made["bytes"] == len(content)
        path = f"/v1/files/{made['id']}/content"
        assert client.get(path).content == content
        part = client.get(path, headers={"Range": "bytes=1000000-1000255"})
        assert (part.status_code, part.content) == (206, content[1_000_000:1_000_256])
        head = client.head(path)
        assert (head.headers["content-length"], head.content) == (str(len(content)), b"")
        assert client.delete(f"/v1/files/{made['id']}").json()["deleted"]


@pytest.mark.parametrize(
    "headers",
    [
        {f"x-{number}": "1" for number in range(140)},
        {"x-long": "a" * 33_000},
    ],
)
def test_too_many_headers_are_refused_in_the_envelope(
    served: Served, headers: dict[str, str]
) -> None:
    """Before anything else looks at them."""
    response = httpx.get(served.url + "/healthz", headers=headers)
    assert response.status_code == 431
    assert response.json()["error"]["code"] == "headers_too_large"


def test_headers_that_steer_serve_steer_nothing(served: Served) -> None:
    """A deadline, a replica, a session of the client's choosing: all are taken away."""
    _, key = served.create_key()
    steering = {
        "x-request-timeout-seconds": "0.001",
        "X-Request-Timeout-Seconds": "0.001",
        "x-request-disconnect-disabled": "?1",
        "serve_multiplexed_model_id": "x",
        "x-session-id": "y",
        "x-serve-router-anything": "z",
    }
    with served.client(key) as client:
        response = client.post("/v1/chat/completions", json=CHAT, headers=steering)
    assert response.status_code == 200


@pytest.mark.parametrize("given", ["x" * 4096, "a b", "<script>", "a;b"])
@pytest.mark.fault(30)
def test_an_unsafe_request_id_is_replaced_once(served: Served, given: str) -> None:
    """One id in the answer, another than was sent; the log stays one object a line."""
    response = httpx.get(served.url + "/v1/models", headers={"x-request-id": given})
    (request_id,) = response.headers.get_list("x-request-id")
    assert re.fullmatch("req_[0-9a-f]{32}", request_id)
    lines = (served.settings.state_dir / "omai.log").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert any(entry.get("request_id") == request_id for entry in entries)
    assert all(given != entry.get("request_id") for entry in entries)


@pytest.mark.parametrize("path", ["/-/routes", "/-/healthz", "/v1/../v1/models", "//v1/models"])
def test_odd_paths_get_an_answer(served: Served, path: str) -> None:
    """Serve's own, which tell nothing, or the envelope."""
    response = httpx.get(served.url + path)
    if response.status_code >= 400:
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_connection_is_kept_for_the_next_request(served: Served) -> None:
    """HTTP keep-alive, after errors too."""
    _, key = served.create_key()
    with socket.create_connection(("127.0.0.1", served.settings.port), timeout=30) as connection:
        for path, status in (("/healthz", 200), ("/v1/nothing", 404), ("/v1/models", 200)):
            request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
            connection.sendall(request.encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(1)
            assert int(head.split()[1]) == status
            length = int(re.findall(rb"content-length: (\d+)", head.lower())[0])
            body = b""
            while len(body) < length:
                body += connection.recv(length - len(body))
