"""Load on an HTTP server: keep-alive connections, each with one request at a time."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop

EVENT = b"data: "
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Call:
    """A POST that every client repeats. events: the fewest that its answer must have."""

    url: str
    body: dict[str, Any]
    key: str = "none"
    events: int = 0

    def raw(self) -> bytes:
        """Return the request's bytes."""
        parts = urlsplit(self.url)
        body = json.dumps(self.body).encode()
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass
class Load:
    """What was answered, and in how many seconds each."""

    taken: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.taken) / self.elapsed_s

    @property
    def p50_ms(self) -> float:
        """The median time of an answer."""
        return statistics.median(self.taken) * 1e3

    @property
    def client_cpu_ms(self) -> float:
        """CPU time of an answer on this side."""
        return self.cpu_s / len(self.taken) * 1e3


class _Client(asyncio.Protocol):
    """One connection; asks again as soon as it is answered, until `end`."""

    def __init__(self, call: Call, load: Load, end: float) -> None:
        self._call = call
        self._raw = call.raw()
        self._load = load
        self._end = end
        self._body: list[bytes] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._ask()

    def _ask(self) -> None:
        self._body.clear()
        self._begun = time.perf_counter()
        self._transport.write(self._raw)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        status, body = self._parser.get_status_code(), b"".join(self._body)
        if status != 200 or body.count(EVENT) < self._call.events or b'"error"' in body:
            self.done.set_exception(RuntimeError(f"{self._call.url}: {status}: {body[:500]!r}"))
            self._transport.close()
            return
        self._load.taken.append(now - self._begun)
        if now < self._end:
            self._ask()
        else:
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"{self._call.url}: closed: {exc}"))


def put_load(call: Call, clients: int, seconds: float) -> Load:
    """Let so many clients ask for so long. Raises RuntimeError where one is not answered well."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_put_load(call, clients, seconds))


async def _put_load(call: Call, clients: int, seconds: float) -> Load:
    parts = urlsplit(call.url)
    loop = asyncio.get_running_loop()
    load, begun, cpu = Load(), time.perf_counter(), time.process_time()
    protocols = [_Client(call, load, begun + seconds) for _ in range(clients)]
    for protocol in protocols:
        await loop.create_connection(lambda p=protocol: p, parts.hostname, parts.port)
    async with asyncio.timeout(seconds + PATIENCE_S):
        await asyncio.gather(*(protocol.done for protocol in protocols))
    load.elapsed_s = time.perf_counter() - begun
    load.cpu_s = time.process_time() - cpu
    return load
