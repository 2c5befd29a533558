from __future__ import annotations

import pytest

from omai_ray.autoscaling.throughput import ThroughputCurve

FIXED_S, EACH_S, BATCH = 0.02, 0.001, 16
FULL = BATCH / (FIXED_S + EACH_S * BATCH)


def observe(curve: ThroughputCurve, concurrency: float, seconds: float = 60.0) -> None:
    """Show a curve what a replica does at a concurrency."""
    tokens = concurrency * seconds / (FIXED_S + EACH_S * concurrency)
    curve.observe(seconds, concurrency * seconds, tokens)


def test_a_full_replicas_throughput_is_known_from_half_full_ones() -> None:
    """Two concurrencies below a full batch show the line that leads there."""
    curve = ThroughputCurve(BATCH)
    for concurrency in (2, 8, 2, 8):
        observe(curve, concurrency)
    assert FULL == pytest.approx(curve.full_tokens_per_s, rel=0.1)


def test_a_full_replicas_throughput_is_what_it_does() -> None:
    """Nothing is supposed where it is seen."""
    curve = ThroughputCurve(BATCH)
    observe(curve, BATCH)
    assert FULL == pytest.approx(curve.full_tokens_per_s)


def test_nothing_is_known_of_replicas_that_did_nothing() -> None:
    """Idle time teaches nothing."""
    curve = ThroughputCurve(BATCH)
    curve.observe(10.0, 0.0, 0.0)
    assert curve.full_tokens_per_s is None


def test_what_was_long_ago_is_forgotten() -> None:
    """Replicas that became half as fast are known to be so."""
    curve = ThroughputCurve(BATCH)
    observe(curve, BATCH, 3600)
    for _ in range(60):
        curve.observe(60.0, BATCH * 60.0, FULL / 2 * 60.0)
    assert FULL / 2 == pytest.approx(curve.full_tokens_per_s, rel=0.05)
