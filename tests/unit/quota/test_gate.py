from __future__ import annotations

import asyncio
from typing import Any

import pytest

from omai_ray.errors import PermissionDenied, RateLimited
from omai_ray.identity.principal import Principal
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.quota.durations import go_duration
from omai_ray.quota.gate import Gate
from omai_ray.quota.protocol import Decision, Limiter, Reservation
from omai_ray.settings import DEFAULT_TIERS

ADA = Principal("acct_1", "ada", "basic", key_id="k1")
BIG = Principal("acct_2", "big", "enterprise", key_id="k2")
LOST = Principal("acct_3", "lost", "platinum", key_id="k3")


@pytest.fixture
def buckets(clock: Any) -> InProcessBuckets:
    """Return empty buckets."""
    return InProcessBuckets(clock)


@pytest.fixture
def gate(buckets: InProcessBuckets) -> Gate:
    """Return a gate of the default tiers."""
    return gate_of(buckets)


def gate_of(limiter: Limiter, spent: int = 0) -> Gate:
    """Return a gate of the default tiers; so many tokens of every budget are spent."""

    async def spent_in(account_id: str, month: str) -> int:
        return spent

    return Gate(limiter, DEFAULT_TIERS, MonthlyBudgets(spent_in))


async def refusal(gate: Gate, tokens: int, who: Principal = ADA) -> RateLimited:
    """Return the error that asking for so many tokens raises."""
    with pytest.raises(RateLimited) as caught:
        await gate.admit(who, "omai-gpt-4", tokens, "req")
    return caught.value


async def test_a_permit_says_what_is_left(gate: Gate) -> None:
    """All six headers, resets as Go durations."""
    permit = await gate.admit(ADA, "omai-gpt-4", 1_000, "req")

    assert {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "40000",
        "x-ratelimit-remaining-tokens": "39000",
        "x-ratelimit-reset-tokens": "1.5s",
    } == permit.headers


async def test_a_refusal_for_tokens_reads_as_openai_words_it(gate: Gate) -> None:
    """Message, type, code and headers are what its SDKs expect."""
    await gate.admit(ADA, "omai-gpt-4", 38_928, "req")
    error = await refusal(gate, 1_159)

    assert (
        "Rate limit reached for omai-gpt-4 on tokens per min (TPM): Limit 40000, Used 38928, "
        "Requested 1159. Please try again in 130ms."
    ) == error.message
    envelope = error.envelope()["error"]
    assert ("tokens", "rate_limit_exceeded") == (envelope["type"], envelope["code"])
    assert {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "40000",
        "x-ratelimit-remaining-tokens": "1072",
        "x-ratelimit-reset-tokens": "58.392s",
        "Retry-After": "1",
        "retry-after-ms": "131",
    } == error.headers


async def test_a_refusal_for_requests_reads_as_openai_words_it(gate: Gate) -> None:
    """The type says which limit it was."""
    for _ in range(60):
        await gate.admit(ADA, "omai-gpt-4", 1, "req")
    error = await refusal(gate, 1)

    assert (
        "Rate limit reached for omai-gpt-4 on requests per min (RPM): Limit 60, Used 60, "
        "Requested 1. Please try again in 1s."
    ) == error.message
    assert "requests" == error.envelope()["error"]["type"]
    assert ("1", "1000") == (error.headers["Retry-After"], error.headers["retry-after-ms"])


async def test_a_request_too_large_is_not_to_be_retried(gate: Gate) -> None:
    """No wait helps; SDKs are told so."""
    error = await refusal(gate, 41_538)

    assert error.message.startswith(
        "Request too large for omai-gpt-4 on tokens per min (TPM): "
        "Limit 40000, Requested 41538. The input or output tokens must be reduced"
    )
    assert "false" == error.headers["x-should-retry"]
    assert "Retry-After" not in error.headers


async def test_a_wait_over_a_minute_is_not_to_be_retried(gate: Gate) -> None:
    """The Node SDK would ignore so long a wait and come back at once."""
    permit = await gate.admit(ADA, "omai-gpt-4", 40_000, "req")
    await permit.settle(80_000)
    error = await refusal(gate, 40_000)

    assert "Used 80000" in error.message
    assert "Please try again in 2m0s." in error.message
    assert ("false", "120") == (error.headers["x-should-retry"], error.headers["Retry-After"])


async def test_waiting_as_told_is_enough(gate: Gate, clock: Any) -> None:
    """The milliseconds are rounded up."""
    await gate.admit(ADA, "omai-gpt-4", 39_999, "req")
    error = await refusal(gate, 3)
    clock.now_s += int(error.headers["retry-after-ms"]) / 1000

    assert await gate.admit(ADA, "omai-gpt-4", 3, "req")


async def test_an_unlimited_tier_asks_nobody_and_shows_no_headers() -> None:
    """Enterprise works while the limiter does not."""
    permit = await gate_of(Broken()).admit(BIG, "omai-gpt-4", 10**9, "req")
    await permit.settle(5)

    assert {} == permit.headers


async def test_an_unknown_tier_fails_closed(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    """It neither becomes unlimited nor crashes; the log says what to configure."""
    with pytest.raises(PermissionDenied, match="tier 'platinum' is not configured"):
        await gate.admit(LOST, "omai-gpt-4", 1, "req")
    assert "tier 'platinum' is not configured (there are: basic, pro, enterprise)" in caplog.text


async def test_keys_of_an_account_share_its_limits(gate: Gate) -> None:
    """Another key is no second allowance."""
    await gate.admit(ADA, "omai-gpt-4", 40_000, "req")
    other = Principal("acct_1", "ada", "basic", key_id="another")

    assert (await refusal(gate, 1_000, other)).limited == "tokens"


async def test_settling_returns_what_was_not_used_once(gate: Gate) -> None:
    """Whatever the second call says."""
    permit = await gate.admit(ADA, "omai-gpt-4", 40_000, "req")
    await permit.settle(10_000)
    await permit.settle(0)

    assert "Used 10000" in (await refusal(gate, 40_000)).message


async def test_a_client_that_repeats_its_request_id_pays_each_time(gate: Gate) -> None:
    """Request ids may come from clients: they identify no reservation."""
    await gate.admit(ADA, "omai-gpt-4", 30_000, "same")

    assert "Used 30000" in (await refusal(gate, 30_000)).message


class Held:
    """A limiter that answers when it is let."""

    def __init__(self, inner: InProcessBuckets) -> None:
        self.inner = inner
        self.reached = asyncio.Event()
        self.let = asyncio.Event()
        self.settled = asyncio.Event()

    async def reserve(self, reservation: Reservation) -> Decision:
        decision = self.inner.reserve_one(reservation)
        self.reached.set()
        await self.let.wait()
        return decision

    async def settle(self, reservation: Reservation, used_tokens: int) -> None:
        self.reached.set()
        await self.let.wait()
        await self.inner.settle(reservation, used_tokens)
        self.settled.set()


class Broken:
    """A limiter that is gone."""

    async def reserve(self, reservation: Reservation) -> Decision:
        raise ConnectionError("gone")

    async def settle(self, reservation: Reservation, used_tokens: int) -> None:
        raise ConnectionError("gone")


async def test_a_settlement_whose_caller_is_cancelled_goes_on(buckets: InProcessBuckets) -> None:
    """A client that leaves in mid-stream is the usual reason to settle."""
    held = Held(buckets)
    held.let.set()
    permit = await gate_of(held).admit(ADA, "m", 40_000, "req")
    held.let.clear()
    held.reached.clear()
    task = asyncio.create_task(permit.settle(0))
    await held.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.let.set()
    await permit.settle(40_000)

    assert await gate_of(buckets).admit(ADA, "m", 40_000, "req")


async def test_a_caller_that_leaves_while_reserving_gets_its_tokens_back(
    buckets: InProcessBuckets,
) -> None:
    """Nobody else could return them."""
    held = Held(buckets)
    task = asyncio.create_task(gate_of(held).admit(ADA, "m", 40_000, "req"))
    await held.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.let.set()
    await held.settled.wait()

    assert await gate_of(buckets).admit(ADA, "m", 40_000, "req")


async def test_a_settlement_that_fails_is_logged_and_not_raised(
    buckets: InProcessBuckets, caplog: pytest.LogCaptureFixture
) -> None:
    """The response has been sent; its reservation stays spent and refills."""
    gate = gate_of(buckets)
    permit = await gate.admit(ADA, "m", 10, "req-7")
    permit._limiter = Broken()
    await permit.settle(5)

    assert "req-7" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0004, "0s"),
        (0.012, "12ms"),
        (0.1305, "130ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (8.64, "8.64s"),
        (58.392, "58.392s"),
        (59.9999, "59.999s"),
        (60, "1m0s"),
        (86.4, "1m26.4s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90061.001, "25h1m1.001s"),
    ],
)
def test_durations_read_as_go_writes_them(seconds: float, expected: str) -> None:
    """As `time.Duration.String` does."""
    assert expected == go_duration(seconds)
