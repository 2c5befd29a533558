from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import make_url

from omai_ray.errors import Overloaded
from omai_ray.identity.administration import Administration
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.keys import generate
from omai_ray.identity.registry import Registry
from omai_ray.store import Store
from tests.databases import Postgres

HERE = "1.2.3.4"


class Wire:
    """Passes bytes on to a server, until it is told to swallow them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass(source, sink))
            self._tasks.add(task)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await self.open.wait()
                sink.write(data)
                await sink.drain()
        sink.close()

    async def cut(self) -> None:
        """End every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def wire(postgres: Postgres) -> AsyncIterator[tuple[Wire, str]]:
    """Give a wire to the server, and the URL of a new database at its other end."""
    async with postgres.database() as url:
        wire = Wire(postgres.port)
        server = await asyncio.start_server(wire, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        yield wire, make_url(url).set(port=port).render_as_string()
        server.close()
        await wire.cut()
        await server.wait_closed()


def bearer(token: str) -> tuple[bytes, bytes]:
    """Return the header that sends a key."""
    return b"authorization", f"Bearer {token}".encode()


@pytest.mark.fault(9)
async def test_a_server_that_swallows_packets_is_answered_for(
    wire: tuple[Wire, str], registry: Registry, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known keys pass, others are told to come back; nothing hangs, and all is well afterwards."""
    monkeypatch.setattr("omai_ray.store.store.DEADLINE_S", 0.5)
    line, url = wire
    store = await Store.open(url)
    behind = replace(registry, store=store)
    admin = Administration(behind)
    await admin.accounts.create("ada", "basic")
    _, key = await admin.keys.create("ada")
    _, other = await admin.keys.create("ada")
    _, unknown = generate()
    authenticator = Authenticator(behind, monotonic=clock)
    assert await authenticator.authenticate([bearer(key)], HERE)

    authenticator._keys._answer_s = 0.2
    line.open.clear()
    clock.now_s += 6.0
    calls = [authenticator.authenticate([bearer(t)], HERE) for t in (key, key, other, unknown)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [False, False, True, True] == [isinstance(o, Overloaded) for o in outcomes]
    assert {"ada"} == {o.account_name for o in outcomes[:2]}  # type: ignore[union-attr]

    await asyncio.sleep(0.6)  # the queries under way are given up
    line.open.set()
    authenticator._keys._answer_s = None
    clock.now_s += 6.0
    for token in (key, other):
        assert await authenticator.authenticate([bearer(token)], HERE)
    await authenticator.close()
    await store.close()
