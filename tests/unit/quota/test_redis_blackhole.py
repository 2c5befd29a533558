from __future__ import annotations

import asyncio
import uuid

import pytest
from sqlalchemy import make_url

from omai_ray.quota.coalescing import CoalescingLimiter
from omai_ray.quota.protocol import Claim, Limits, Reservation
from omai_ray.quota.redis_authority import RedisAuthority
from tests.wire import wire_to

PATIENCE_S = 5.0  # far below the time limit of the connection itself


def ask(account: str) -> Reservation:
    """Return a small reservation of an account that has 60 requests a minute."""
    return Reservation(uuid.uuid4().hex, (Claim(account, Limits(60, 40_000)),), 10)


@pytest.mark.fault(9)
async def test_decisions_are_made_here_while_redis_swallows_packets(redis_url: str) -> None:
    """At the limiter's own deadline, whatever the connection's; nothing hangs."""
    account = uuid.uuid4().hex
    port = make_url(redis_url).port
    assert port is not None
    async with wire_to(port) as (line, open_port):
        authority = RedisAuthority(f"redis://127.0.0.1:{open_port}/0", timeout_s=600.0)
        limiter = CoalescingLimiter(authority)
        assert (await limiter.reserve(ask(account))).admitted
        assert 0 == limiter.fallbacks
        line.open.clear()
        async with asyncio.timeout(PATIENCE_S):
            decisions = [await limiter.reserve(ask(account)) for _ in range(3)]
        assert all(decision.admitted for decision in decisions)
        assert 3 == limiter.fallbacks
        line.open.set()
        await limiter.close()
        await authority.close()
