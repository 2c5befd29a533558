"""Clients that never finish what they begin to send, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from deployments import connections
from deployments.connections import BoundedProtocol

WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
BEGUN = b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "
UNFINISHED = b"POST /at-once HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
SHORT_S = 0.2


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer after longer than headers may take, or at once, whatever of the body has come."""
    if scope["path"] != "/at-once":
        await asyncio.sleep(2 * SHORT_S)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    """Serve answers, with a short time for headers and for the rest of a body."""
    monkeypatch.setattr(connections, "HEADERS_S", SHORT_S)
    monkeypatch.setattr(connections, "REST_S", SHORT_S)
    config = uvicorn.Config(answer, http=BoundedProtocol, lifespan="off", log_config=None)
    config.load()
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: BoundedProtocol(config, server.server_state, {}), "127.0.0.1", 0
    )
    yield listener.sockets[0].getsockname()[1]
    listener.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()


async def until_closed(port: int, begin: bytes, drip: bytes) -> bytes:
    """Send the beginning, then more again and again; return what came before the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(begin)

    async def dripping() -> None:
        while drip:
            await asyncio.sleep(SHORT_S / 10)
            writer.write(drip)

    task = asyncio.create_task(dripping())
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await task
        writer.close()


@pytest.mark.fault(13)
@pytest.mark.parametrize(("begin", "drip"), [(b"", b""), (BEGUN, b""), (BEGUN, b"a")])
async def test_a_connection_whose_headers_never_end_is_closed(
    port: int, begin: bytes, drip: bytes
) -> None:
    """Silent from the start, after a while, or sending a byte now and then."""
    assert b"" == await until_closed(port, begin, drip)


async def test_a_slow_answer_is_not_cut_off_and_the_next_request_may_follow(port: int) -> None:
    """The time is the client's own, for each request's headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for begun in (b"", BEGUN):
        writer.write(begun + b"\r\n\r\n" if begun else WHOLE)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"ok" == await reader.readexactly(2)
    writer.write(BEGUN)
    assert b"" == await reader.read()
    writer.close()


@pytest.mark.parametrize("drip", [b"", b"a"])
async def test_a_request_that_is_answered_and_never_ends_is_closed(port: int, drip: bytes) -> None:
    """Though its client sends a byte now and then, and sent one after the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UNFINISHED)
    assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
    writer.write(b"a")
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            while not reader.at_eof():
                writer.write(drip)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), SHORT_S / 10)
    writer.close()


async def test_a_request_that_is_answered_may_end_and_another_follow(port: int) -> None:
    """Each has the time of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):
        writer.write(UNFINISHED)
        assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
        writer.write(b"a" * 1_000_000)
    writer.write(WHOLE)
    assert (await reader.readuntil(b"\r\n\r\nok")).startswith(b"HTTP/1.1 200")
    writer.close()
