from __future__ import annotations

import asyncio
from typing import Any

import pytest

from omai_ray.errors import Overloaded, RateLimited
from omai_ray.identity import throttle as module
from omai_ray.identity.throttle import LoginThrottle, source_group


async def fail(throttle: LoginThrottle, source: str, user: str) -> None:
    """Guess wrong."""
    throttle.end(await throttle.begin(source, user), failed=True)


async def test_the_eleventh_failure_in_a_minute_is_refused(clock: Any) -> None:
    """Retry-After is when the oldest leaves the window."""
    throttle = LoginThrottle(clock)
    for _ in range(10):
        await fail(throttle, "1.2.3.4", "ada")
        clock.now_s += 2.0
    with pytest.raises(RateLimited) as caught:
        await throttle.begin("1.2.3.4", "bob")

    assert "Too many failed logins. Please try again in 40s." == caught.value.message
    assert {"Retry-After": "40", "retry-after-ms": "40000"} == caught.value.headers
    assert 429 == caught.value.status
    clock.now_s += 40.0
    await throttle.begin("1.2.3.4", "ada")


@pytest.mark.fault(18)
async def test_a_thousand_bad_logins_from_one_source_keep_nobody_else_out(clock: Any) -> None:
    """Refused attempts do not count against the user."""
    throttle = LoginThrottle(clock)
    refused = 0
    for _ in range(1000):
        try:
            await fail(throttle, "6.6.6.6", "ada")
        except RateLimited:
            refused += 1
    await throttle.begin("1.2.3.4", "ada")

    assert 990 == refused


async def test_many_sources_that_guess_one_user_are_refused(clock: Any) -> None:
    """Whether or not there is such a user."""
    throttle = LoginThrottle(clock)
    for number in range(30):
        await fail(throttle, f"10.0.0.{number}", "ada")
    with pytest.raises(RateLimited):
        await throttle.begin("10.0.1.1", "ada")
    await throttle.begin("10.0.1.1", "bob")


async def test_successes_do_not_count_however_many_come_at_once(clock: Any) -> None:
    """A class behind one address: those above the bound wait until others are in."""
    throttle = LoginThrottle(clock)

    async def log_in(number: int) -> None:
        attempt = await throttle.begin("1.2.3.4", f"user{number}")
        await asyncio.sleep(0)
        throttle.end(attempt, failed=False)

    await asyncio.gather(*(log_in(number) for number in range(50)))
    assert not throttle._counters


async def test_guesses_at_once_are_no_more_than_one_after_another(clock: Any) -> None:
    """Those that wait are refused once the others have failed."""
    throttle = LoginThrottle(clock)
    tried = 0

    async def guess() -> None:
        nonlocal tried
        attempt = await throttle.begin("1.2.3.4", "ada")
        tried += 1
        await asyncio.sleep(0)
        throttle.end(attempt, failed=True)

    outcomes = await asyncio.gather(*(guess() for _ in range(100)), return_exceptions=True)
    assert 10 == tried
    assert 90 == sum(isinstance(outcome, RateLimited) for outcome in outcomes)


async def test_only_so_many_wait(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are told to come back."""
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    throttle = LoginThrottle(clock)
    running = [await throttle.begin("1.2.3.4", "ada") for _ in range(10)]
    waiting = [asyncio.create_task(throttle.begin("1.2.3.4", "ada")) for _ in range(3)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert 1 == sum(isinstance(task.exception(), Overloaded) for task in waiting if task.done())
    for attempt in running:
        throttle.end(attempt, failed=False)
    await asyncio.wait(waiting)


async def test_a_success_does_not_forgive_failures(clock: Any) -> None:
    """An account of one's own is no way to guess at others."""
    throttle = LoginThrottle(clock)
    for _ in range(10):
        await fail(throttle, "1.2.3.4", "ada")
        if len(throttle._counters["source", "1.2.3.4"].failures) < 10:
            throttle.end(await throttle.begin("1.2.3.4", "mallory"), failed=False)
    with pytest.raises(RateLimited):
        await throttle.begin("1.2.3.4", "ada")


async def test_memory_is_bounded(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of any length and number."""
    monkeypatch.setattr(module, "MAX_KEYS", 20)
    throttle = LoginThrottle(clock)
    for number in range(100):
        await fail(throttle, f"source {number}", f"{number}" * 3000)

    assert 20 == len(throttle._counters)
    assert max(len(name) for _, name in throttle._counters) <= 64


@pytest.mark.parametrize(
    ("source", "group"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("unknown", "unknown"),
    ],
)
def test_a_network_of_ipv6_is_one_source(source: str, group: str) -> None:
    """One client has more addresses there than it could ever guess from."""
    assert group == source_group(source)
