from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from omai_ray.quota.bucket import Bucket

CAPACITY = st.integers(1, 10**7)
TIMES = st.floats(0, 300, allow_nan=False)
STEPS = st.lists(st.tuples(st.floats(0, 90), st.integers(0, 10**7)), min_size=1, max_size=40)


def admit(bucket: Bucket, units: int, now_s: float) -> bool:
    """Take the units if they are there at that time."""
    bucket.refill(now_s)
    if bucket.wait_s(units) != 0:
        return False
    bucket.take(units)
    return True


@given(CAPACITY, STEPS)
def test_no_interval_admits_more_than_capacity_and_refill(
    capacity: int, steps: list[tuple[float, int]]
) -> None:
    """Exactly so: there is no rounding for a caller to collect."""
    bucket = Bucket.full(capacity, 0.0)
    now_s, admitted = 0.0, []
    for elapsed_s, units in steps:
        now_s += elapsed_s
        if admit(bucket, units, now_s):
            admitted.append((round(now_s * 1e9), units))

    for first, (start_ns, _) in enumerate(admitted):
        total = 0
        for end_ns, units in admitted[first:]:
            total += units
            assert total * 60 * 10**9 <= capacity * (60 * 10**9 + end_ns - start_ns)


@given(CAPACITY, st.lists(st.tuples(TIMES, st.integers(0, 10**7)), max_size=40))
def test_a_clock_that_runs_backwards_refills_nothing_twice(
    capacity: int, steps: list[tuple[float, int]]
) -> None:
    """Whatever the order of times, no more than the span between the extremes is refilled."""
    bucket = Bucket.full(capacity, 0.0)
    total = sum(units for now_s, units in steps if admit(bucket, units, now_s))
    latest_ns = max((round(now_s * 1e9) for now_s, _ in steps), default=0)

    assert total * 60 * 10**9 <= capacity * (60 * 10**9 + latest_ns)


@given(CAPACITY, st.integers(0, 10**7), st.integers(0, 10**7))
def test_the_wait_is_long_enough_and_no_longer(capacity: int, used: int, units: int) -> None:
    """Whoever waits that long is admitted; a microsecond less is not enough."""
    bucket = Bucket.full(capacity, 0.0)
    bucket.take(used)
    wait_s = bucket.wait_s(units)
    if wait_s is None:
        assert units > capacity
        return
    bucket.refill(wait_s - 1e-6)
    assert wait_s == 0 or bucket.wait_s(units) != 0
    bucket.refill(wait_s)
    assert bucket.wait_s(units) == 0


def test_published_wait_is_reproduced() -> None:
    """Limit 40000, used 38928, requested 1159: 130.5 ms."""
    bucket = Bucket.full(40_000, 5.0)
    bucket.take(38_928)

    assert 0.1305 == bucket.wait_s(1159)
    assert 1072 == bucket.remaining


def test_an_overdraft_is_paid_back_before_anything_is_admitted() -> None:
    """A response may use more than it had reserved; the next one waits for it."""
    bucket = Bucket.full(60, 0.0)
    bucket.take(90)

    assert (0, 90.0, 31.0) == (bucket.remaining, bucket.reset_s, bucket.wait_s(1))


@given(CAPACITY, CAPACITY, st.integers(0, 10**7))
def test_a_changed_tier_keeps_the_fraction_that_is_left(old: int, new: int, used: int) -> None:
    """An upgrade is felt at once, and a downgrade locks nobody out for hours."""
    bucket = Bucket.full(old, 0.0)
    bucket.take(min(used, old))
    before_s = bucket.reset_s
    bucket.resize(new)

    assert new == bucket.capacity
    assert abs(before_s - bucket.reset_s) < 1e-6 + 1 / new
    assert bucket.remaining <= new


@given(CAPACITY, st.integers(0, 10**7), st.integers(0, 10**7))
def test_nothing_returned_overfills_a_bucket(capacity: int, taken: int, given_back: int) -> None:
    """What does not fit is lost."""
    bucket = Bucket.full(capacity, 0.0)
    bucket.take(taken)
    bucket.give(given_back)

    assert bucket.remaining <= capacity


def test_a_nanosecond_too_early_is_too_early() -> None:
    """Three parts of 60e9 are missing for one unit: rounding does not give them away."""
    bucket = Bucket.full(7, 0.0)
    bucket.take(7)
    bucket.refill(8.571428571)

    assert 1e-9 == bucket.wait_s(1)
    assert 0 == bucket.remaining
