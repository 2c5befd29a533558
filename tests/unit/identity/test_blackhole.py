from __future__ import annotations

import asyncio
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
from tests.wire import Wire, wire_to

HERE = "1.2.3.4"


@pytest.fixture
async def wire(postgres: Postgres) -> AsyncIterator[tuple[Wire, str]]:
    """Give a wire to the server, and the URL of a new database at its other end."""
    async with postgres.database() as url, wire_to(postgres.port) as (line, port):
        yield line, make_url(url).set(port=port).render_as_string()


def bearer(token: str) -> tuple[bytes, bytes]:
    """Return the header that sends a key."""
    return b"authorization", f"Bearer {token}".encode()


@pytest.mark.fault(9)
async def test_a_server_that_swallows_packets_is_answered_for(
    wire: tuple[Wire, str], registry: Registry, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known keys pass, others are told to come back; nothing hangs, and all is well afterwards."""
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
    with monkeypatch.context() as impatient:
        impatient.setattr("omai_ray.store.store.DEADLINE_S", 0.5)
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
