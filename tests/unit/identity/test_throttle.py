from __future__ import annotations

from typing import Any

import pytest

from omai_ray.errors import RateLimited
from omai_ray.identity import throttle as module
from omai_ray.identity.throttle import LoginThrottle


def test_the_eleventh_failure_in_a_minute_is_refused(clock: Any) -> None:
    """Retry-After is when the oldest leaves the window."""
    throttle = LoginThrottle(clock)
    for _ in range(10):
        throttle.begin("1.2.3.4", "ada")
        clock.now_s += 2.0
    with pytest.raises(RateLimited) as caught:
        throttle.begin("1.2.3.4", "bob")

    assert "Too many failed logins. Please try again in 40s." == caught.value.message
    assert {"Retry-After": "40", "retry-after-ms": "40000"} == caught.value.headers
    assert 429 == caught.value.status
    clock.now_s += 40.0
    throttle.begin("1.2.3.4", "ada")


def test_a_thousand_bad_logins_from_one_source_keep_nobody_else_out(clock: Any) -> None:
    """Refused attempts do not count against the user."""
    throttle = LoginThrottle(clock)
    refused = 0
    for _ in range(1000):
        try:
            throttle.begin("6.6.6.6", "ada")
        except RateLimited:
            refused += 1
    throttle.begin("1.2.3.4", "ada")

    assert 990 == refused


def test_many_sources_that_guess_one_user_are_refused(clock: Any) -> None:
    """Whether or not there is such a user."""
    throttle = LoginThrottle(clock)
    for number in range(30):
        throttle.begin(f"10.0.0.{number}", "ada")
    with pytest.raises(RateLimited):
        throttle.begin("10.0.1.1", "ada")
    throttle.begin("10.0.1.1", "bob")


def test_successes_do_not_count(clock: Any) -> None:
    """However many."""
    throttle = LoginThrottle(clock)
    for _ in range(100):
        throttle.forgive(throttle.begin("1.2.3.4", "ada"))
    assert not throttle._failures


def test_a_success_does_not_forgive_failures(clock: Any) -> None:
    """An account of one's own is no way to guess at others."""
    throttle = LoginThrottle(clock)
    for _ in range(10):
        clock.now_s += 0.001
        throttle.begin("1.2.3.4", "ada")
        if len(throttle._failures["source", "1.2.3.4"]) < 10:
            throttle.forgive(throttle.begin("1.2.3.4", "mallory"))
    with pytest.raises(RateLimited):
        throttle.begin("1.2.3.4", "ada")


def test_memory_is_bounded(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of any length and number."""
    monkeypatch.setattr(module, "MAX_KEYS", 20)
    throttle = LoginThrottle(clock)
    for number in range(100):
        throttle.begin(f"source {number}", f"{number}" * 3000)

    assert 20 == len(throttle._failures)
    assert max(len(name) for _, name in throttle._failures) <= 64
