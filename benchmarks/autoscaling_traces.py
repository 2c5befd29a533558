"""Three loads that an autoscaler may meet: requests a second, for each second, from a seed."""

from __future__ import annotations

import math
import random

CLUMPS = 16  # the variance of a clump's height is 1 / CLUMPS
CLUMP_S = 2


def diurnal(seconds: int, mean: float, rng: random.Random) -> list[float]:
    """Return a day and its night: a sine from 0.4 to 1.6 of the mean, wandering by some percent."""
    drift, rates = 0.0, []
    for second in range(seconds):
        drift += -drift / 300 + rng.gauss(0.0, 0.003)
        day = 1.0 - 0.6 * math.cos(2 * math.pi * second / seconds)
        rates.append(mean * day * (1 + drift))
    return rates


def flash_crowd(seconds: int, mean: float, rng: random.Random) -> list[float]:
    """Return an even load; once, within half a minute, three times as much, which ebbs away."""
    begin = seconds * 0.4 + rng.uniform(-60, 60)
    rates = []
    for second in range(seconds):
        since = second - begin
        rise = min(max(since / 30, 0.0), 1.0)
        ebb = math.exp(-max(since - 600, 0.0) / 600)
        rates.append(mean * (1 + 2 * rise * ebb))
    return rates


def bursts(seconds: int, mean: float, rng: random.Random) -> list[float]:
    """Return bursts of 3 to 8 minutes with 25 to 50 % more.

    A burst comes within half a minute, a quarter of an hour after the one before.
    """
    rates = [mean] * seconds
    at = 0.0
    while (at := at + rng.expovariate(1 / 900)) < seconds:
        height, length = rng.uniform(0.25, 0.5), rng.uniform(180, 480)
        for second in range(int(at), min(int(at + length), seconds)):
            rates[second] += mean * height * min((second - at) / 30, 1.0)
        at += length
    return rates


def bursty(seconds: int, mean: float, rng: random.Random) -> list[float]:
    """Return these bursts, with clumps of arrivals all the time."""
    rates = bursts(seconds, mean, rng)
    for second in range(0, seconds, CLUMP_S):
        clump = rng.gammavariate(CLUMPS, 1 / CLUMPS)
        clumped = slice(second, second + CLUMP_S)
        rates[clumped] = [rate * clump for rate in rates[clumped]]
    return rates


TRACES = {"diurnal": diurnal, "flash_crowd": flash_crowd, "bursty": bursty}
# From the same seed, the rates without their clumps.
EXPECTED = {**TRACES, "bursty": bursts}
