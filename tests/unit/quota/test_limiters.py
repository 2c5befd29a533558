"""What every keeper of the buckets must do: in this process, in Redis, and behind a client."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omai_ray.quota.buckets import LATE_S, InProcessBuckets
from omai_ray.quota.coalescing import CoalescingLimiter
from omai_ray.quota.protocol import (
    Authority,
    Batch,
    Claim,
    Decision,
    Limits,
    Reservation,
)
from omai_ray.quota.redis_authority import RedisAuthority

BASIC = Limits(60, 40_000)


@pytest.fixture(params=["process", "redis", "client"])
async def authority(request: pytest.FixtureRequest, clock: Any) -> AsyncIterator[Authority]:
    """Return empty buckets, of each kind in turn; reservations are forgotten after 30 s."""
    kind = request.param
    if kind == "redis":
        url = request.getfixturevalue("redis_url")
        redis = RedisAuthority(url, clock=clock, ttl_s=30.0, prefix=uuid.uuid4().hex)
        yield redis
        await redis.close()
        return
    buckets = InProcessBuckets(clock, ttl_s=30.0)
    yield Through(CoalescingLimiter(buckets, clock=clock)) if kind == "client" else buckets


class Through:
    """An authority asked by way of a client."""

    def __init__(self, limiter: CoalescingLimiter) -> None:
        self._limiter = limiter

    async def close(self) -> None:
        await self._limiter.close()

    async def call(self, batch: Batch) -> list[Decision]:
        self._limiter._charges += batch.charges
        settling = [self._limiter.settle(*settlement) for settlement in batch.settlements]
        await asyncio.gather(*settling)
        if batch.charges:
            self._limiter._send()
            assert self._limiter._sending is not None
            await self._limiter._sending
        return [await self._limiter.reserve(reservation) for reservation in batch.reservations]


def ask(name: str, tokens: int, *claims: Claim) -> Reservation:
    """Return a reservation; of a basic account's, unless claims say otherwise."""
    return Reservation(name, claims or (Claim("acct_1", BASIC),), tokens)


async def decide(authority: Authority, *reservations: Reservation) -> list[Decision]:
    """Return the decisions."""
    return await authority.call(Batch([], [], list(reservations)))


async def settle(authority: Authority, reservation: Reservation, used: int) -> None:
    """Settle one."""
    await authority.call(Batch([], [(reservation, used)], []))


async def left(authority: Authority, *claims: Claim) -> tuple[int, int]:
    """Look without taking: a request that can never fit is refused with what is left."""
    (decision,) = await decide(authority, ask(uuid.uuid4().hex, 10**9, *claims))
    assert decision.requests is not None
    assert decision.tokens is not None
    return decision.requests.remaining, decision.tokens.remaining


async def test_an_admitted_request_takes_one_request_and_its_tokens(authority: Authority) -> None:
    """The answer shows both buckets as they are after it."""
    (decision,) = await decide(authority, ask("a", 10_000))
    assert decision.admitted
    assert (59, 30_000) == (decision.requests.remaining, decision.tokens.remaining)  # type: ignore[union-attr]
    assert (60, 40_000) == (decision.requests.limit, decision.tokens.limit)  # type: ignore[union-attr]
    assert decision.requests.reset_s == pytest.approx(1.0)  # type: ignore[union-attr]
    assert decision.tokens.reset_s == pytest.approx(15.0)  # type: ignore[union-attr]


async def test_a_refused_request_takes_nothing_and_is_told_when(
    authority: Authority, clock: Any
) -> None:
    """At that time it fits, and not before."""
    await decide(authority, ask("a", 39_000))
    (refused,) = await decide(authority, ask("b", 2_000))
    assert (False, "tokens") == (refused.admitted, refused.limited)
    assert refused.retry_after_s == pytest.approx(1.5)
    assert (59, 1_000) == await left(authority)
    clock.now_s += 1.49
    assert not (await decide(authority, ask("c", 2_000)))[0].admitted
    clock.now_s += 0.02
    assert (await decide(authority, ask("d", 2_000)))[0].admitted


async def test_requests_are_limited_apart_from_tokens(authority: Authority) -> None:
    """The sixty-first at one instant waits for a second."""
    decisions = await decide(authority, *(ask(str(number), 1) for number in range(61)))
    assert [True] * 60 + [False] == [decision.admitted for decision in decisions]
    assert "requests" == decisions[-1].limited
    assert decisions[-1].retry_after_s == pytest.approx(1.0)


async def test_a_request_larger_than_the_bucket_never_fits(authority: Authority) -> None:
    """There is no time to wait for."""
    (refused,) = await decide(authority, ask("a", 40_001))
    assert ("tokens", None) == (refused.limited, refused.retry_after_s)


async def test_settling_returns_what_was_not_used_once(authority: Authority) -> None:
    """The request stays counted; use beyond the reservation is taken, even into debt."""
    first, second = ask("a", 30_000), ask("b", 5_000)
    await decide(authority, first, second)
    for used in (10_000, 0, 30_000):
        await settle(authority, first, used)
    assert (58, 25_000) == await left(authority)
    await settle(authority, second, 50_000)
    (refused,) = await decide(authority, ask("c", 10_000))
    assert refused.retry_after_s == pytest.approx((10_000 + 20_000) * 60 / 40_000)
    await settle(authority, ask("unknown", 10), 0)
    await settle(authority, second, -50_000)
    assert (58, 0) == await left(authority)


async def test_a_repeated_call_charges_once(authority: Authority) -> None:
    """Whoever lost the answer may ask again, and is told the same."""
    for _ in range(3):
        (decision,) = await decide(authority, ask("a", 10_000))
        assert decision.admitted
    assert (59, 30_000) == await left(authority)


async def test_a_charge_is_taken_in_any_case_and_once(authority: Authority) -> None:
    """What was admitted elsewhere, even into debt."""
    charge = ask("a", 30_000)
    await authority.call(Batch([charge, charge, ask("b", 30_000)], [], []))
    assert (58, 0) == await left(authority)
    await settle(authority, charge, 0)
    assert (58, 10_000) == await left(authority)


async def test_all_claims_admit_or_none_is_charged(authority: Authority) -> None:
    """A key's own limit and its account's: the tighter one refuses, and is shown."""
    account, key = Claim("acct_1", BASIC), Claim("acct_1/k1", Limits(2, 1_000))
    (admitted,) = await decide(authority, ask("a", 900, account, key))
    assert (2, 1) == (admitted.requests.limit, admitted.requests.remaining)  # type: ignore[union-attr]
    (refused,) = await decide(authority, ask("b", 200, account, key))
    assert ("tokens", 1_000) == (refused.limited, refused.tokens.limit)  # type: ignore[union-attr]
    assert refused.retry_after_s == pytest.approx(6.0)
    assert (59, 39_100) == await left(authority, account)
    await settle(authority, ask("a", 900, account, key), 100)
    assert (59, 39_900) == await left(authority, account)
    assert (await decide(authority, ask("c", 200, account, key)))[0].admitted


async def test_only_so_many_run_at_once(authority: Authority, clock: Any) -> None:
    """One that ends, or is forgotten because its replica died, makes room."""
    two = Claim("acct_1", Limits(None, None, 2))
    first, second, third = (ask(name, 5, two) for name in "abc")
    assert [True, True, False] == [
        decision.admitted for decision in await decide(authority, first, second, third)
    ]
    (refused,) = await decide(authority, third)
    assert ("concurrency", 1.0, None, None) == (
        refused.limited,
        refused.retry_after_s,
        refused.requests,
        refused.tokens,
    )
    await settle(authority, first, 5)
    assert [True, False] == [d.admitted for d in await decide(authority, third, ask("d", 5, two))]
    clock.now_s += 30.0
    assert (await decide(authority, ask("e", 5, two)))[0].admitted


async def test_an_unlimited_dimension_has_no_state(authority: Authority) -> None:
    """Whatever is asked for."""
    (requests,) = await decide(authority, ask("a", 10**9, Claim("acct_1", Limits(5, None))))
    assert (True, None) == (requests.admitted, requests.tokens)
    (tokens,) = await decide(authority, ask("b", 5, Claim("acct_2", Limits(None, 10))))
    assert (True, None) == (tokens.admitted, tokens.requests)


async def test_a_changed_tier_counts_at_once(authority: Authority) -> None:
    """As full as before, in proportion."""
    await decide(authority, ask("a", 20_000))
    pro = Claim("acct_1", Limits(3_000, 2_000_000))
    assert (2_950, 1_000_000) == await left(authority, pro)


async def test_a_reservation_never_settled_stays_spent(authority: Authority, clock: Any) -> None:
    """Its settlement after its time changes nothing: it has refilled."""
    lost = ask("lost", 40_000)
    await decide(authority, lost)
    clock.now_s += 31.0
    await settle(authority, lost, 0)
    assert 20_666 == (await left(authority))[1]


@pytest.mark.parametrize("later_s", [20.0, 31.0, LATE_S])
async def test_use_beyond_the_reservation_is_taken_however_late(
    authority: Authority, clock: Any, later_s: float
) -> None:
    """From a bucket that has been full in the meantime, and so forgotten; once."""
    long = ask("long", 256)
    await decide(authority, long)
    await decide(authority, ask("other", 1))
    clock.now_s += later_s
    if isinstance(authority, RedisAuthority):  # the server forgets by its own clock
        await authority._redis.delete(authority._keys(long)[2])
    for _ in range(2):
        await settle(authority, long, 30_256)
    assert 10_000 == (await left(authority))[1]


async def test_a_bound_that_is_new_begins_full(authority: Authority) -> None:
    """Tokens were not limited before."""
    await decide(authority, ask("a", 10, Claim("acct_1", Limits(60, None))))
    assert (59, 40_000) == await left(authority)


async def test_a_clock_that_runs_backwards_refills_nothing_twice(
    authority: Authority, clock: Any
) -> None:
    """Several nodes' clocks differ; nobody gains by it."""
    await decide(authority, ask("a", 40_000))
    clock.now_s += 30.0
    assert 20_000 == (await left(authority))[1]
    clock.now_s -= 20.0
    assert 20_000 >= (await left(authority))[1]
    clock.now_s += 20.0
    assert 20_000 == (await left(authority))[1]


@pytest.mark.parametrize("authority", ["redis"], indirect=True)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(["reserve", "settle", "charge"]),
            st.integers(0, 5),
            st.integers(0, 120),
            st.integers(0, 64),
        ),
        max_size=40,
    )
)
async def test_redis_decides_as_this_process_does(
    authority: RedisAuthority, clock: Any, actions: list[tuple[str, int, int, int]]
) -> None:
    """For any sequence of reservations, settlements and charges."""
    account = uuid.uuid4().hex
    ours = InProcessBuckets(clock, ttl_s=30.0)
    claims = (Claim(account, Limits(7, 100, 4)), Claim(f"{account}/k", Limits(5, None)))
    first_s = clock.now_s
    for verb, number, tokens, sixtyfourths in actions:
        if clock.now_s - first_s < 25:  # the server forgets reservations by its own clock
            clock.now_s += sixtyfourths / 64
        asked = ask(f"{account}{number}", tokens, *claims)
        batch = {
            "reserve": Batch([], [], [asked]),
            "settle": Batch([], [(asked, tokens)], []),
            "charge": Batch([asked], [], []),
        }[verb]
        expected, found = await ours.call(batch), await authority.call(batch)
        assert [counts(decision) for decision in expected] == [counts(d) for d in found]
        assert [times(decision) for decision in expected] == [
            pytest.approx(times(decision), abs=1e-5) for decision in found
        ]


def counts(decision: Decision) -> Any:
    """Return what of a decision is counted."""
    buckets = [b and (b.limit, b.remaining) for b in (decision.requests, decision.tokens)]
    return decision.admitted, decision.limited, buckets


def times(decision: Decision) -> list[float]:
    """Return a decision's times, which Redis has as doubles."""
    resets = [bucket.reset_s for bucket in (decision.requests, decision.tokens) if bucket]
    return [-1.0 if decision.retry_after_s is None else decision.retry_after_s, *resets]
