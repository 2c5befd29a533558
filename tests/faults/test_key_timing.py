"""Whether the time that a check of a key takes tells how much of the key was right."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from omai_ray.identity.keys import ParsedKey, generate, matches
from tests.unit.identity.test_keys import PEPPERS, row_of

SAMPLES = 5000
LEAST_P = 0.01
ATTEMPTS = 3
"""Equal times are told apart once in a hundred attempts by chance; three in a row are no chance."""


def with_wrong(parsed: ParsedKey, index: int) -> ParsedKey:
    """Return the key with another character of its secret at a place."""
    secret = list(parsed.secret)
    secret[index] = "a" if secret[index] != "a" else "b"
    return replace(parsed, secret="".join(secret))


def welch_p(one: list[int], two: list[int]) -> float:
    """Return the two-sided p of Welch's test, by the normal distribution: samples are many."""
    variance = statistics.variance(one) / len(one) + statistics.variance(two) / len(two)
    t = (statistics.fmean(one) - statistics.fmean(two)) / math.sqrt(variance)
    return math.erfc(abs(t) / math.sqrt(2))


def checked(parsed: ParsedKey) -> Callable[[ParsedKey], bool]:
    """Return the check of keys against a key's row."""
    row = row_of(parsed)
    return lambda key: matches(key, row, PEPPERS)


def checked_until_the_first_difference(parsed: ParsedKey) -> Callable[[ParsedKey], bool]:
    """Return a check that leaks: it compares character by character, and ends early."""

    def check(key: ParsedKey) -> bool:
        for given, right in zip(key.secret, parsed.secret, strict=True):  # noqa: SIM110
            if given != right:
                return False
        return True

    return check


def measured(checking: Callable[[ParsedKey], Callable[[ParsedKey], bool]]) -> float:
    """Return the p of the times with the first and with the last character wrong, in turns."""
    parsed, _ = generate()
    check = checking(parsed)
    assert check(parsed)
    keys = [with_wrong(parsed, index) for index in (0, len(parsed.secret) - 1)]
    times: list[list[int]] = [[], []]
    for number in range(2 * (SAMPLES + 500)):
        which = (number + number // 2) % 2  # each follows either
        begun_ns = time.perf_counter_ns()
        is_right = check(keys[which])
        times[which].append(time.perf_counter_ns() - begun_ns)
        assert not is_right
    # The first are of a cold cache; the slowest are of other processes' turns.
    warm = [sorted(sample[500:])[: SAMPLES * 95 // 100] for sample in times]
    return welch_p(*warm)


@pytest.mark.fault(19)
def test_the_time_of_a_check_does_not_tell_which_character_was_wrong() -> None:
    """The first or the last: Welch's test does not tell them apart."""
    assert max(measured(checked) for _ in range(ATTEMPTS)) > LEAST_P


@pytest.mark.fault(19)
def test_a_comparison_that_ends_at_the_first_difference_would_be_found() -> None:
    """The test of the test: the times of one, measured likewise, are told apart."""
    leaks = [measured(checked_until_the_first_difference) for _ in range(ATTEMPTS)]
    assert max(leaks) < LEAST_P
