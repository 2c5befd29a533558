from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omai_ray.quota import buckets
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.protocol import BucketState, Claim, Limiter, Limits, Reservation

BASIC = Limits(60, 40_000)


def ask(name: str, tokens: int, limits: Limits = BASIC, bucket: str = "acct_1") -> Reservation:
    """Return a reservation."""
    return Reservation(name, (Claim(bucket, limits),), tokens)


def tokens_left(kept: InProcessBuckets, limits: Limits = BASIC) -> int:
    """Look without taking: a request too large for the bucket is refused with its state."""
    state = kept.reserve_one(ask("look", 10**12, limits)).tokens
    assert state is not None
    return state.remaining


def test_it_keeps_the_limiter_protocol(clock: Any) -> None:
    """The gate takes it as it is."""
    limiter: Limiter = InProcessBuckets(clock)
    assert limiter


def test_an_admitted_request_takes_one_request_and_its_tokens(clock: Any) -> None:
    """The answer shows both buckets as they are after it."""
    decision = InProcessBuckets(clock).reserve_one(ask("a", 10_000))

    assert decision.admitted
    assert BucketState(60, 59, 1.0) == decision.requests
    assert BucketState(40_000, 30_000, 15.0) == decision.tokens


def test_a_refused_request_takes_nothing(clock: Any) -> None:
    """Neither a request nor tokens: both or none."""
    kept = InProcessBuckets(clock)
    kept.reserve_one(ask("a", 39_000))
    refused = kept.reserve_one(ask("b", 2_000))

    assert ("tokens", 1.5) == (refused.limited, refused.retry_after_s)
    assert BucketState(60, 59, 1.0) == refused.requests
    assert 1_000 == tokens_left(kept)


def test_requests_are_limited_apart_from_tokens(clock: Any) -> None:
    """The sixty-first in a minute waits for a second."""
    kept = InProcessBuckets(clock)
    decisions = kept.reserve_many(ask(str(number), 1) for number in range(61))

    assert [True] * 60 + [False] == [decision.admitted for decision in decisions]
    assert ("requests", 1.0) == (decisions[-1].limited, decisions[-1].retry_after_s)


def test_the_longer_wait_is_the_one_that_is_named(clock: Any) -> None:
    """Who waits for it is not refused by the other bucket then."""
    kept = InProcessBuckets(clock)
    kept.reserve_many([ask(str(number), 600) for number in range(60)])
    refused = kept.reserve_one(ask("last", 5_500))

    assert ("tokens", 2.25) == (refused.limited, refused.retry_after_s)
    clock.now_s += 2.25
    assert kept.reserve_one(ask("last", 5_500)).admitted


def test_a_request_larger_than_the_bucket_never_fits(clock: Any) -> None:
    """There is no time to wait for."""
    refused = InProcessBuckets(clock).reserve_one(ask("a", 40_001))

    assert ("tokens", None) == (refused.limited, refused.retry_after_s)


def test_accounts_do_not_share_buckets(clock: Any) -> None:
    """One account's use leaves another's alone."""
    kept = InProcessBuckets(clock)
    kept.reserve_one(ask("a", 40_000))

    assert kept.reserve_one(ask("b", 40_000, bucket="acct_2")).admitted


def test_unused_tokens_return_and_the_request_does_not(clock: Any) -> None:
    """Requests per minute count every accepted request, failed ones too."""
    kept = InProcessBuckets(clock)
    kept.reserve_one(ask("a", 30_000))
    kept.settle_one("a", 0)
    decision = kept.reserve_one(ask("b", 40_000))

    assert decision.admitted
    assert decision.requests is not None
    assert 58 == decision.requests.remaining


def test_settling_twice_returns_tokens_once(clock: Any) -> None:
    """Idempotent, also when the second differs."""
    kept = InProcessBuckets(clock)
    kept.reserve_many([ask("a", 10_000), ask("b", 20_000)])
    for name, used in (("a", 4_000), ("a", 0), ("a", 10_000), ("unknown", 0)):
        kept.settle_one(name, used)

    assert 16_000 == tokens_left(kept)


def test_use_beyond_the_reservation_is_taken(clock: Any) -> None:
    """Even into debt."""
    kept = InProcessBuckets(clock)
    kept.reserve_one(ask("a", 10_000))
    kept.settle_one("a", 50_000)
    refused = kept.reserve_one(ask("b", 1_000))

    assert 16.5 == refused.retry_after_s


def test_a_negative_use_returns_no_more_than_was_reserved(clock: Any) -> None:
    """A wrong caller cannot make quota."""
    kept = InProcessBuckets(clock)
    kept.reserve_many([ask("a", 10_000), ask("b", 10_000)])
    kept.settle_one("a", -10_000)

    assert 30_000 == tokens_left(kept)


def test_a_negative_reservation_is_refused() -> None:
    """It would fill the bucket."""
    with pytest.raises(ValueError, match="-1 tokens"):
        ask("a", -1)


def test_a_repeated_call_charges_once(clock: Any) -> None:
    """Whoever lost the answer may ask again."""
    kept = InProcessBuckets(clock)
    first = kept.reserve_one(ask("a", 10_000))

    assert first == kept.reserve_one(ask("a", 10_000))


def test_a_reservation_never_settled_stays_spent_and_is_forgotten(clock: Any) -> None:
    """Its settlement after the time limit changes nothing."""
    kept = InProcessBuckets(clock, ttl_s=30.0)
    kept.reserve_one(ask("lost", 40_000))
    clock.now_s += 30.0
    assert 20_000 == tokens_left(kept)
    kept.settle_one("lost", 0)

    assert 20_000 == tokens_left(kept)
    assert not kept._open


def test_open_reservations_are_bounded(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten, and stay spent."""
    monkeypatch.setattr(buckets, "MAX_RESERVATIONS", 3)
    kept = InProcessBuckets(clock)
    kept.reserve_many(ask(str(number), 1) for number in range(10))

    assert 3 == len(kept._open)


def test_idle_accounts_take_no_memory(clock: Any) -> None:
    """A full bucket is the same as none; one in debt is kept until it has paid."""
    kept = InProcessBuckets(clock)
    kept.reserve_many(ask(str(number), 40_000, bucket=f"acct_{number}") for number in range(100))
    for number in range(100):
        kept.settle_one(str(number), 80_000 if number == 7 else 40_000)
    assert 100 == len(kept._pairs)
    clock.now_s += 60.0
    kept.reserve_many(ask(f"again{number}", 1, bucket="acct_new") for number in range(60))

    assert {"acct_new", "acct_7"} == set(kept._pairs)


def test_a_changed_tier_counts_at_once(clock: Any) -> None:
    """The limits come with each reservation."""
    kept = InProcessBuckets(clock)
    kept.reserve_one(ask("a", 20_000))

    assert 1_000_000 == tokens_left(kept, Limits(3_000, 2_000_000))
    assert kept.reserve_one(ask("b", 10**9, Limits(60, None))).admitted


@pytest.mark.parametrize("limits", [Limits(None, 40_000), Limits(60, None), Limits(None, None)])
def test_an_unlimited_dimension_has_no_bucket(clock: Any, limits: Limits) -> None:
    """And no state to show."""
    decision = InProcessBuckets(clock).reserve_one(ask("a", 100, limits))

    assert decision.admitted
    assert (limits.requests_per_minute is None) == (decision.requests is None)
    assert (limits.tokens_per_minute is None) == (decision.tokens is None)


async def test_the_asynchronous_methods_decide_the_same(clock: Any) -> None:
    """They never wait, hence nothing comes between check and take."""
    kept = InProcessBuckets(clock)
    assert (await kept.reserve(ask("a", 40_000))).admitted
    assert not (await kept.reserve(ask("b", 1))).admitted
    await kept.settle(ask("a", 40_000), 0)
    assert (await kept.reserve(ask("c", 40_000))).admitted


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle"]),
        st.integers(0, 5),
        st.integers(0, 120),
        st.floats(-5, 20),
    ),
    max_size=60,
)


def test_a_dropped_bucket_does_not_return_in_its_own_past(clock: Any) -> None:
    """A clock that runs backwards over the drop would refill that span twice."""
    kept = InProcessBuckets(clock)
    kept.reserve_one(ask("a", 1))
    clock.now_s += 60.0
    kept.reserve_one(ask("b", 1, bucket="acct_2"))  # drops acct_1
    clock.now_s -= 60.0
    kept.reserve_one(ask("c", 40_000))
    clock.now_s += 60.0

    assert 0 == tokens_left(kept)


@given(ACTIONS)
def test_net_use_never_exceeds_capacity_and_refill(
    actions: list[tuple[str, int, int, float]],
) -> None:
    """For any interleaving of reservations, settlements, repeats and a jumping clock."""
    now = [100.0]
    kept = InProcessBuckets(lambda: now[0])
    reserved: dict[str, int] = {}
    net, latest_s = 0, 100.0
    kept.reserve_one(ask("first", 0))
    for verb, number, units, elapsed_s in actions:
        now[0] = max(0.0, now[0] + elapsed_s)
        latest_s = max(latest_s, now[0])
        name = str(number)
        if verb == "reserve":
            decision = kept.reserve_one(ask(name, units, Limits(None, 100)))
            if decision.admitted and name not in reserved:
                reserved[name] = units
                net += units
        elif name in reserved:
            kept.settle_one(name, min(units, reserved[name]))
            net -= reserved[name] - min(units, reserved.pop(name))
        assert 0 <= net <= 100 + (latest_s - 100.0) * 100 / 60 + 1e-6


def test_a_request_is_charged_to_all_its_claims_or_to_none(clock: Any) -> None:
    """A key's own limit and its account's: the tighter one refuses, and is shown."""
    kept = InProcessBuckets(clock)
    account, key = Claim("acct_1", BASIC), Claim("acct_1/k1", Limits(2, 1_000))

    def both(name: str, tokens: int) -> Reservation:
        return Reservation(name, (account, key), tokens)

    admitted = kept.reserve_one(both("a", 900))
    assert (BucketState(2, 1, 30.0), BucketState(1_000, 100, 54.0)) == (
        admitted.requests,
        admitted.tokens,
    )
    refused = kept.reserve_one(both("b", 200))
    assert ("tokens", 6.0, BucketState(1_000, 100, 54.0)) == (
        refused.limited,
        refused.retry_after_s,
        refused.tokens,
    )
    assert 39_100 == tokens_left(kept)
    kept.settle_one("a", 100)
    assert 39_900 == tokens_left(kept)
    assert kept.reserve_one(both("c", 200)).admitted


def test_what_no_claim_can_hold_is_never_admitted(clock: Any) -> None:
    """Whichever of them is too small; the wait of another does not hide it."""
    kept = InProcessBuckets(clock)
    claims = (Claim("acct_1", Limits(1, None)), Claim("acct_1/k1", Limits(None, 1_000)))
    assert kept.reserve_one(Reservation("a", claims, 10)).admitted
    refused = kept.reserve_one(Reservation("b", claims, 2_000))

    assert ("tokens", None) == (refused.limited, refused.retry_after_s)
