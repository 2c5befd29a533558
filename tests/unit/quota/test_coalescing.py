from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from omai_ray.errors import Overloaded
from omai_ray.quota.buckets import RESERVATION_TTL_S, InProcessBuckets
from omai_ray.quota.coalescing import CoalescingLimiter, ShardedLimiter
from omai_ray.quota.protocol import Batch, Claim, Decision, Limits, Reservation

BASIC = Limits(60, 40_000)


class Held:
    """An authority over buckets that is away, or slow, when a test says so; counts its calls."""

    def __init__(self, clock: Any) -> None:
        self.buckets = InProcessBuckets(clock)
        self.let = asyncio.Event()
        self.let.set()
        self.away = False
        self.lost = False
        self.batches: list[Batch] = []
        self.called = asyncio.Event()

    async def close(self) -> None:
        pass

    async def call(self, batch: Batch) -> list[Decision]:
        self.batches.append(batch)
        self.called.set()
        if self.away:
            raise ConnectionError("away")
        await self.let.wait()
        decisions = await self.buckets.call(batch)
        if self.lost:
            raise ConnectionError("the answer was lost")
        return decisions


@pytest.fixture
def held(clock: Any) -> Held:
    """Return an authority."""
    return Held(clock)


def client(held: Held, clock: Any, replicas: int = 1) -> CoalescingLimiter:
    """Return a client that tries again after 10 ms of the event loop's time."""
    return CoalescingLimiter(held, replicas, deadline_s=5.0, retry_s=0.01, clock=clock)


def ask(name: str, tokens: int = 1, bucket: str = "acct_1") -> Reservation:
    """Return a basic account's reservation."""
    return Reservation(name, (Claim(bucket, BASIC),), tokens)


async def settled(limiter: CoalescingLimiter) -> None:
    """Wait until all has been sent."""
    while limiter._sending is not None:
        await asyncio.gather(limiter._sending)


async def admitted(limiter: CoalescingLimiter, count: int, prefix: str) -> int:
    """Ask so many times at once; return how many are admitted."""
    decisions = await asyncio.gather(
        *(limiter.reserve(ask(f"{prefix}{number}")) for number in range(count))
    )
    return sum(decision.admitted for decision in decisions)


async def test_what_comes_while_a_call_is_in_flight_shares_the_next(held: Held, clock: Any) -> None:
    """Two round trips for a hundred requests."""
    limiter = client(held, clock)
    held.let.clear()
    first = asyncio.create_task(limiter.reserve(ask("first")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(limiter.reserve(ask(str(number)))) for number in range(50)]
    settling = asyncio.create_task(limiter.settle(ask("other"), 5))
    await asyncio.sleep(0)
    held.let.set()
    await asyncio.gather(first, *rest, settling)

    assert [(1, 0), (50, 1)] == [(len(b.reservations), len(b.settlements)) for b in held.batches]


async def test_the_queue_is_bounded(
    held: Held, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is told to come back."""
    monkeypatch.setattr("omai_ray.quota.coalescing.MAX_WAITING", 2)
    limiter = client(held, clock)
    held.let.clear()
    waiting = [asyncio.create_task(limiter.reserve(ask("first")))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(limiter.reserve(ask(name))) for name in "ab"]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await limiter.reserve(ask("c"))
    held.let.set()
    await asyncio.gather(*waiting)


async def test_replicas_without_their_authority_admit_no_more_than_was_left(
    held: Held, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Each its share of what it last knew; every decision is counted, and told once."""
    replicas = [client(held, clock, replicas=3) for _ in range(3)]
    assert [10] * 3 == [await admitted(r, 10, f"r{n}.") for n, r in enumerate(replicas)]
    held.away = True
    during = [await admitted(r, 100, f"away{n}.") for n, r in enumerate(replicas)]

    # The last one knew that 30 were left, the others that there were more.
    assert during == [16, 13, 10]
    assert [100] * 3 == [r.fallbacks for r in replicas]
    assert 3 == caplog.text.count("decisions are made in this process")
    assert "ConnectionError" in caplog.text
    for limiter in replicas:
        await limiter.close()


async def test_what_was_admitted_meanwhile_is_charged_afterwards(held: Held, clock: Any) -> None:
    """With what it has used; the authority then refuses as if it had been there."""
    limiter = client(held, clock)
    held.away = True
    reservations = [ask(f"a{number}", 1_000) for number in range(20)]
    decisions = await asyncio.gather(*map(limiter.reserve, reservations))
    assert all(decision.admitted for decision in decisions)
    await asyncio.gather(*(limiter.settle(reservation, 500) for reservation in reservations[:10]))
    held.away = False
    clock.now_s += 0.02
    await settled(limiter)
    (look,) = await held.buckets.call(Batch([], [], [ask("look", 10**9)]))

    assert (40, 25_000) == (look.requests.remaining, look.tokens.remaining)  # type: ignore[union-attr]
    assert 20 == limiter.fallbacks
    assert (await limiter.reserve(ask("b"))).admitted
    assert 20 == limiter.fallbacks


async def test_an_answer_that_was_lost_charges_once(held: Held, clock: Any) -> None:
    """Decided there and here, it is the same request."""
    limiter = client(held, clock)
    held.lost = True
    assert (await limiter.reserve(ask("a", 1_000))).admitted
    held.lost = False
    clock.now_s += 0.02
    await settled(limiter)
    (look,) = await held.buckets.call(Batch([], [], [ask("look", 10**9)]))

    assert (59, 39_013) == (look.requests.remaining, look.tokens.remaining)  # type: ignore[union-attr]


async def test_a_slow_authority_is_not_waited_for(held: Held, clock: Any) -> None:
    """Everybody who waits is answered, and nobody waits again before it is tried again."""
    limiter = CoalescingLimiter(held, deadline_s=0.01, retry_s=0.01, clock=clock)
    held.let.clear()
    assert 60 == await admitted(limiter, 100, "a")
    calls = len(held.batches)
    assert 0 == await admitted(limiter, 10, "b")
    assert calls == len(held.batches)
    held.let.set()
    clock.now_s += 1.0
    await settled(limiter)
    assert not (await limiter.reserve(ask("c"))).admitted
    clock.now_s += 1.0
    assert (await limiter.reserve(ask("d"))).admitted
    await limiter.close()


async def test_a_settlement_is_kept_while_the_authority_is_away(held: Held, clock: Any) -> None:
    """It does not hold up the answer that it belongs to."""
    limiter = client(held, clock)
    reservation = ask("a", 30_000)
    await limiter.reserve(reservation)
    held.away = True
    await limiter.reserve(ask("b", 10))
    await limiter.settle(reservation, 10_000)
    held.away = False
    clock.now_s += 0.02
    await settled(limiter)
    (look,) = await held.buckets.call(Batch([], [], [ask("look", 10**9)]))

    assert 30_000 <= look.tokens.remaining <= 30_010  # type: ignore[union-attr]


async def test_a_caller_that_leaves_disturbs_no_other(held: Held, clock: Any) -> None:
    """Its place in the batch stays."""
    limiter = client(held, clock)
    held.let.clear()
    tasks = [asyncio.create_task(limiter.reserve(ask(str(number)))) for number in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[1].cancel()
    held.let.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [True, False, True] == [isinstance(outcome, Decision) for outcome in outcomes]


async def test_closing_leaves_nobody_waiting(held: Held, clock: Any) -> None:
    """What was not decided is cancelled."""
    limiter = client(held, clock)
    held.let.clear()
    task = asyncio.create_task(limiter.reserve(ask("a")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await limiter.close()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_account_is_with_one_shard(clock: Any) -> None:
    """Its keys' claims too; accounts are spread."""
    authorities = [Held(clock) for _ in range(4)]
    limiter = ShardedLimiter([client(held, clock) for held in authorities])
    for number in range(40):
        reservation = ask(f"a{number}", bucket=f"acct_{number % 20}")
        await limiter.reserve(reservation)
        await limiter.settle(reservation, 1)
    where = [
        {r.claims[0].bucket for batch in held.batches for r in batch.reservations}
        for held in authorities
    ]
    assert 20 == sum(map(len, where)) == len(set().union(*where))
    assert all(where)
    assert 0 == limiter.fallbacks
    await limiter.close()


def test_buckets_go_on_from_a_snapshot(clock: Any) -> None:
    """What was spent stays spent; the time since then refills; what is open can be settled."""
    wall = type(clock)()
    kept = InProcessBuckets(clock, wall=wall)
    kept.reserve_many([ask("a", 30_000), ask("b", 10_000)])
    snapshot = kept.snapshot()
    clock.now_s = 5.0  # another machine's
    wall.now_s += 3.0
    again = InProcessBuckets(clock, wall=wall)
    again.restore(snapshot)
    refused = again.reserve_one(ask("c", 40_000))
    assert (60, 2_000) == (refused.requests.remaining, refused.tokens.remaining)  # type: ignore[union-attr]
    again.settle_one("a", 0)
    assert 32_000 == again.reserve_one(ask("d", 40_000)).tokens.remaining  # type: ignore[union-attr]


def test_what_is_to_be_settled_late_is_in_the_snapshot_too(clock: Any) -> None:
    """What it used beyond its reservation is taken."""
    kept = InProcessBuckets(clock)
    kept.reserve_one(ask("long", 1))
    clock.now_s += RESERVATION_TTL_S
    again = InProcessBuckets(clock)
    again.restore(kept.snapshot())
    again.settle_one("long", 10_001)
    assert 29_900 == again.reserve_one(ask("d", 100)).tokens.remaining  # type: ignore[union-attr]


def test_a_snapshot_from_a_clock_ahead_freezes_nothing(clock: Any) -> None:
    """No time has passed then, and it goes on from there."""
    wall = type(clock)()
    kept = InProcessBuckets(clock, wall=wall)
    kept.reserve_one(ask("a", 40_000))
    snapshot = kept.snapshot()
    wall.now_s -= 3600.0
    again = InProcessBuckets(clock, wall=wall)
    again.restore(snapshot)
    clock.now_s += 30.0
    assert again.reserve_one(ask("b", 20_000)).admitted


@pytest.mark.parametrize("snapshot", [b"", b"junk", pickle.dumps((0, 1.0, 1.0, {}, {}))])
def test_what_is_no_snapshot_is_told(clock: Any, snapshot: bytes) -> None:
    """Whoever restores begins with full buckets."""
    with pytest.raises(ValueError, match="snapshot"):
        InProcessBuckets(clock).restore(snapshot)


async def test_a_charge_whose_answer_was_lost_is_taken_once(held: Held, clock: Any) -> None:
    """Though it has been settled with it, and both are sent again and again."""
    limiter = client(held, clock)
    held.away = True
    reservations = [ask(f"a{number}", 1_000) for number in range(10)]
    await asyncio.gather(*map(limiter.reserve, reservations))
    await asyncio.gather(*(limiter.settle(reservation, 500) for reservation in reservations))
    held.away, held.lost = False, True
    for _ in range(3):
        held.called.clear()
        for _ in range(1000):  # time passes until it is called again
            if held.called.is_set():
                break
            clock.now_s += 0.02
            await asyncio.sleep(0.001)
    assert len(held.batches) >= 4
    held.lost = False
    for _ in range(1000):
        if limiter._sending is None:
            break
        clock.now_s += 0.02
        await asyncio.sleep(0.001)
    assert limiter._sending is None
    (look,) = await held.buckets.call(Batch([], [], [ask("look", 10**9)]))

    assert 35_000 <= look.tokens.remaining < 37_000  # type: ignore[union-attr]


async def test_what_is_refused_here_does_not_stay_open_there(held: Held, clock: Any) -> None:
    """The authority may have admitted it before its answer was lost."""
    limiter = client(held, clock, replicas=3)
    two = (Claim("acct_1", Limits(None, None, 3)),)
    held.lost = True
    decisions = await asyncio.gather(
        *(limiter.reserve(Reservation(f"a{number}", two, 1)) for number in range(3))
    )
    assert [True, False, False] == [decision.admitted for decision in decisions]
    held.lost = False
    clock.now_s += 0.02
    await settled(limiter)
    await limiter.settle(Reservation("a0", two, 1), 1)

    assert 0 == held.buckets._pairs["acct_1"].running


async def test_an_authority_that_comes_and_goes_makes_no_quota(held: Held, clock: Any) -> None:
    """What it says is believed for what it was asked, and nothing else is forgotten."""
    limiter = client(held, clock)
    admissions = await admitted(limiter, 10, "first")
    for flap in range(5):
        held.away = True
        admissions += await admitted(limiter, 100, f"away{flap}.")
        held.away = False
        clock.now_s += 0.02
        await settled(limiter)
    assert admissions == 60


async def test_what_is_too_large_for_a_share_alone_may_come_again(held: Held, clock: Any) -> None:
    """And the client sees its tier's limits, not the share."""
    limiter = client(held, clock, replicas=3)
    held.away = True
    refused = await limiter.reserve(ask("a", 20_000))
    assert (False, "tokens", 0.01) == (refused.admitted, refused.limited, refused.retry_after_s)
    assert (60, 40_000) == (refused.requests.limit, refused.tokens.limit)  # type: ignore[union-attr]
    never = await limiter.reserve(ask("b", 50_000))
    assert never.retry_after_s is None
    await limiter.close()


async def test_each_claim_is_remembered_by_itself(held: Held, clock: Any) -> None:
    """A key that is used up says nothing of its account's other keys, while the limiter is away."""
    limiter = client(held, clock)
    account, slow = Claim("acct_1", Limits(3_000, None)), Claim("acct_1/k1", Limits(5, None))
    for number in range(5):
        await limiter.reserve(Reservation(f"s{number}", (account, slow), 1))
    held.away = True
    assert (await limiter.reserve(Reservation("other", (account,), 1))).admitted
    assert not (await limiter.reserve(Reservation("s9", (account, slow), 1))).admitted
    await limiter.close()


async def test_closing_answers_all_who_wait(held: Held, clock: Any) -> None:
    """Queued and in flight, reservations and settlements."""
    limiter = CoalescingLimiter(held, deadline_s=0.01, clock=clock)
    held.let.clear()
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(limiter.settle(ask("a"), 1))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += [
        asyncio.create_task(limiter.settle(ask("b"), 1)),
        asyncio.create_task(limiter.reserve(ask("c"))),
    ]
    await asyncio.sleep(0)
    await limiter.close()
    done, pending = await asyncio.wait(tasks, timeout=5.0)
    assert not pending
    assert 3 == len(done)


def test_changed_limits_count_for_what_was_admitted_before(clock: Any) -> None:
    """Its settlement neither brings the old ones back, nor fills what is spent."""
    kept = InProcessBuckets(clock)
    free, basic = Claim("acct_1", Limits(60, None)), Claim("acct_1", BASIC)
    kept.reserve_one(Reservation("old", (free,), 10))
    kept.reserve_one(Reservation("new", (basic,), 40_000))
    kept.settle_one("old", 10)
    assert not kept.reserve_one(Reservation("more", (basic,), 1)).admitted
