"""The filter over the rate of arrivals, shown streams whose rate is known."""

from __future__ import annotations

import math
import random

import pytest

from omai_ray.autoscaling.demand import Demand, Forecast


def poisson(rate: float, rng: random.Random) -> float:
    """Draw a second's arrivals."""
    count, at = 0, rng.expovariate(rate)
    while at < 1.0:
        count, at = count + 1, at + rng.expovariate(rate)
    return float(count)


def forecast(demand: Demand, ahead_s: float = 0.0) -> Forecast:
    """Return what is forecast where something is."""
    seen = demand.forecast(ahead_s)
    assert seen is not None
    return seen


def mean(seen: Forecast) -> float:
    """Return the rate to be expected."""
    return sum(map(float.__mul__, seen.rates, seen.chances))


def above(seen: Forecast, rate: float) -> float:
    """Return the chance that the rate is above one."""
    pairs = zip(seen.rates, seen.chances, strict=True)
    return sum(chance for each, chance in pairs if each > rate)


def seconds_until(demand: Demand, rate: float, level: float, rng: random.Random) -> int:
    """Show a rate until it is believed, more likely than not, to be on its side of a level."""
    for second in range(1, 300):
        demand.add_second(poisson(rate, rng))
        if (above(forecast(demand), level) > 0.5) == (rate > level):
            return second
    raise AssertionError(f"a rate of {rate:g} was not seen in 300 s")


def test_nothing_is_forecast_before_the_first_second() -> None:
    """What is not known is not guessed."""
    assert Demand().forecast(0.0) is None


def test_a_steady_rate_is_known_and_chance_is_no_change() -> None:
    """After some minutes the mean stays within a sixth of the rate."""
    demand, rng = Demand(), random.Random(1)
    for _ in range(300):
        demand.add_second(poisson(20.0, rng))
    off = []
    for _ in range(900):
        demand.add_second(poisson(20.0, rng))
        off.append(abs(mean(forecast(demand)) / 20.0 - 1))
    assert sum(each > 1 / 6 for each in off) <= 0.02 * len(off)
    assert sum(off) / len(off) < 0.05
    assert 1.0 == pytest.approx(sum(forecast(demand).chances), abs=1e-3)


def test_a_step_is_seen_in_seconds() -> None:
    """The sooner, the larger it is."""
    demand, rng = Demand(), random.Random(2)
    for _ in range(300):
        demand.add_second(poisson(10.0, rng))
    assert seconds_until(demand, 30.0, 20.0, rng) <= 3
    assert seconds_until(demand, 10.0, 20.0, rng) <= 5


def test_a_rate_that_was_before_is_believed_sooner() -> None:
    """Of what came back several times less proof is asked than of what was never seen."""
    rng = random.Random(3)
    known, new = Demand(), Demand()
    for second in range(600):
        known.add_second(14.0 if second // 100 % 2 == 0 else 10.0)
        new.add_second(10.0)
    arrivals = [poisson(14.0, rng) for _ in range(12)]
    for requests in arrivals:
        known.add_second(requests)
        new.add_second(requests)
    assert above(forecast(known), 12.0) > above(forecast(new), 12.0)


def test_clumps_prove_less_than_even_arrivals() -> None:
    """Their dispersion is measured, and the same surplus is less of a change after them."""
    even, clumped, rng = Demand(), Demand(), random.Random(4)
    for _ in range(1200):
        even.add_second(poisson(10.0, rng))
        clumped.add_second(4 * poisson(2.5, rng))
    assert forecast(even).dispersion < 1.7
    assert 2.8 < forecast(clumped).dispersion < 5.5
    for _ in range(5):
        even.add_second(16.0)
        clumped.add_second(16.0)
    assert above(forecast(even), 13.0) > above(forecast(clumped), 13.0)


def test_a_steep_rise_goes_on_while_replicas_start() -> None:
    """By as much again at most; a level is not exceeded."""
    demand = Demand()
    for _ in range(120):
        demand.add_second(10.0)
    assert mean(forecast(demand)) == mean(forecast(demand, 30.0))
    for second in range(20):
        demand.add_second(10.0 + 2 * second)
    now, then = mean(forecast(demand)), mean(forecast(demand, 30.0))
    assert 20.0 == pytest.approx(then - now)
    assert now < then < mean(forecast(demand, 5.0)) + 11


def test_arrivals_after_a_long_silence_are_seen_at_once() -> None:
    """However sure it was that there are none."""
    demand = Demand()
    for _ in range(900):
        demand.add_second(0.0)
    assert mean(forecast(demand)) < 0.1
    for _ in range(5):
        demand.add_second(40.0)
    assert 30 < mean(forecast(demand)) < 50
    assert all(math.isfinite(rate) for rate in forecast(demand).rates)
