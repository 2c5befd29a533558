"""Clients that ask too much, too slowly or without a right, of the platform as it is started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.platform import (
    CHAT,
    EMBEDDING,
    ENDLESS,
    HELLO,
    INGRESS,
    NARROW,
    PATIENCE_S,
    PATIENT,
    PROXY,
    QUEUED,
    RUNNING,
    SLACK,
    Platform,
    eventually,
)
from tests.programs import descendants

pytestmark = pytest.mark.timeout(PATIENCE_S)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
MIB = 2**20
IDLE_CLIENTS = SLOW_CLIENTS = 1000
# In the proxy and both ingress replicas together: 0.15 to 0.4 MiB a stream, by the machine. Most of
# it is what a streaming call of Ray's takes at either end, and none is held beyond that.
HELD_BYTES = IDLE_CLIENTS * MIB // 2


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """Let this process have as many connections open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def rss_bytes(pids: list[int]) -> int:
    """Return the memory of processes."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) * 1024 for text in texts)


@pytest.mark.fault(10)
def test_what_is_above_capacity_is_told_to_come_back(platform: Platform) -> None:
    """60 at once where 20 fit: all of those are answered, no other waits without a word."""
    _, key = platform.served.create_key("wide")
    body = {"model": NARROW, "messages": HELLO, "max_tokens": 1500, **ENDLESS}
    capacity = RUNNING + QUEUED[NARROW]

    def ask(_: int) -> httpx.Response:
        with platform.served.client(key) as client:
            return client.post("/v1/chat/completions", json=body, timeout=150)

    with ThreadPoolExecutor(3 * capacity) as pool:
        answers = list(pool.map(ask, range(3 * capacity)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert capacity <= len(answers) - len(refused) <= 1.5 * capacity
    assert {answer.status_code for answer in refused} <= {429, 503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


@pytest.mark.fault(11)
async def test_a_thousand_idle_streams_are_held_and_others_are_served(platform: Platform) -> None:
    """In bounded memory; all end when their clients leave."""
    account, key = await asyncio.to_thread(platform.served.create_key, "wide")
    holders = platform.pids(PROXY) + platform.pids(INGRESS)
    before = rss_bytes(holders)
    body = {"model": PATIENT, "messages": HELLO, "max_tokens": 1900, "stream": True, **ENDLESS}
    request = http(platform, key, body)
    async with connections(platform, IDLE_CLIENTS) as streams:
        for _, writer in streams:
            writer.write(request)
        heads = await asyncio.gather(*(reader.readline() for reader, _ in streams))
        assert {b"HTTP/1.1 200 OK\r\n"} == set(heads)
        assert rss_bytes(holders) - before < HELD_BYTES
        url = platform.served.url
        async with httpx.AsyncClient(base_url=url, timeout=1.0 * SLACK) as client:
            assert (await client.get("/healthz")).status_code == 200
    await asyncio.to_thread(
        eventually, lambda: platform.served.requests_recorded(account) == IDLE_CLIENTS
    )


def http(platform: Platform, key: str, body: dict[str, Any]) -> bytes:
    """Return a request for a chat completion as it is sent."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@asynccontextmanager
async def connections(platform: Platform, count: int) -> AsyncIterator[list[Connection]]:
    """Open so many connections to the API; leave them all at the end."""
    port = platform.served.settings.port
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    try:
        yield opened
    finally:
        for _, writer in opened:
            writer.transport.abort()
        ends = (writer.wait_closed() for _, writer in opened)
        await asyncio.gather(*ends, return_exceptions=True)


@pytest.mark.fault(13)
async def test_a_thousand_slow_clients_are_cut_off_and_others_are_served(
    platform: Platform,
) -> None:
    """Those whose headers never end: silent, or a byte a second."""
    _, key = await asyncio.to_thread(platform.served.create_key, "wide")
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        connections(platform, SLOW_CLIENTS) as slow,
        httpx.AsyncClient(base_url=platform.served.url, headers=headers, timeout=30) as client,
        asyncio.timeout(15.0 * SLACK),
    ):
        for _, writer in slow:
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        statuses, *got = await asyncio.gather(
            statuses_of(client),
            *(until_closed(*pair, drips=number % 2 == 0) for number, pair in enumerate(slow)),
        )
    assert [200] * 20 == statuses
    assert [b""] * SLOW_CLIENTS == got


async def statuses_of(client: httpx.AsyncClient) -> list[int]:
    """Ask for vectors, time and again."""
    body = {"model": EMBEDDING, "input": "Hello"}
    return [(await client.post("/v1/embeddings", json=body)).status_code for _ in range(20)]


async def until_closed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, drips: bool
) -> bytes:
    """Return what comes before a connection's end; send it a byte a second, or nothing."""
    while True:
        try:
            async with asyncio.timeout(1.0):
                return await reader.read()
        except TimeoutError:
            if drips:
                writer.write(b"a")
        except ConnectionError:
            return b""


@pytest.mark.fault(16, 17)
def test_values_that_cannot_be_are_refused_and_no_process_dies(platform: Platform) -> None:
    """Huge numbers, lists without an end, tokens that there are not."""
    _, key = platform.served.create_key("wide")
    before = platform.pids(r"^ray::ServeReplica")
    chats: list[dict[str, Any]] = [
        {"max_tokens": 10**9},
        {"max_tokens": -1},
        {"n": 10**6},
        {"stop": ["a"] * 100_000},
        {"logit_bias": {str(10**9): 1}},
    ]
    inputs = [[-1], [10**6], [[5], [10**9]], [2**63], ["Hello"] * 100_000]
    with platform.served.client(key) as client:
        answers = [
            client.post("/v1/chat/completions", json={"model": CHAT, "messages": HELLO, **fields})
            for fields in chats
        ]
        answers += [
            client.post("/v1/embeddings", json={"model": EMBEDDING, "input": given})
            for given in inputs
        ]
        prompts = {"model": CHAT, "prompt": ["Hello"] * 100_000}
        answers.append(client.post("/v1/completions", json=prompts))
        for number in ("NaN", "Infinity", "1e999", "1" * 5000):
            content = f'{{"model": "{CHAT}", "messages": [], "temperature": {number}}}'
            headers = {"content-type": "application/json"}
            answers.append(client.post("/v1/chat/completions", content=content, headers=headers))
    assert {400} == {answer.status_code for answer in answers}
    assert before == platform.pids(r"^ray::ServeReplica")


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/jobs/"),
        ("POST", "/api/jobs/"),
        ("GET", "/api/serve/applications/"),
        ("PUT", "/api/serve/applications/"),
        ("GET", "/nodes?view=summary"),
        ("GET", "/api/v0/actors"),
    ],
)
def test_the_clusters_own_interfaces_need_its_token(
    platform: Platform, method: str, path: str
) -> None:
    """The dashboard, jobs, and Serve's own API; whoever has the token may."""
    state_dir = platform.served.settings.state_dir
    cluster = json.loads((state_dir / "cluster.json").read_text())
    answer = httpx.request(method, cluster["dashboard"] + path, timeout=30)
    if path == "/":  # a page without data
        assert key_of(state_dir) not in answer.text
        return
    assert answer.status_code == 401
    token = Path(cluster["token_file"]).read_text().strip()
    if method == "GET":
        headers = {"Authorization": f"Bearer {token}"}
        known = httpx.get(cluster["dashboard"] + path, headers=headers, timeout=60)
        assert known.status_code == 200


def key_of(state_dir: Path) -> str:
    """Return the cluster's token."""
    cluster = json.loads((state_dir / "cluster.json").read_text())
    return Path(cluster["token_file"]).read_text().strip()


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Return the IPv4 and IPv6 addresses, in hexadecimal, and ports that processes listen on."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    places = {fields[9]: fields[1] for fields in lines if fields[3] == "0A"}
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                for inode in re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                    if inode in places:
                        host, _, port = places[inode].partition(":")
                        found.add((host, int(port, 16)))
    return found


@pytest.mark.fault(25)
def test_the_api_and_the_dashboard_listen_on_loopback_only(platform: Platform) -> None:
    """As the settings have them by default."""
    cluster = json.loads((platform.served.settings.state_dir / "cluster.json").read_text())
    ports = {platform.served.settings.port, int(cluster["dashboard"].rpartition(":")[2])}
    found = listening([platform.server_pid, *descendants(platform.server_pid)])
    assert {("0100007F", port) for port in ports} == {place for place in found if place[1] in ports}
