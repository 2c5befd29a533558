"""At what rate requests arrive: the rates that it may be, and the chance of each."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

# The rates that are told apart, in requests/s: each so much above the one before.
_STEP = 0.05
_LOWEST, _LEVELS = 1e-4, 420
_RATES = [_LOWEST * math.exp(_STEP * level) for level in range(_LEVELS)]
_LOGS = [math.log(rate) for rate in _RATES]
# In each second the rate jumps with this chance, and else drifts by this part of itself.
_JUMP = 1 / 1500
_DRIFT = 0.005
# Where it jumps to: to what it was before, by how long it was so; to near where it was, the chance
# falling by e with each quarter more or less; or anywhere.
_BACK, _NEAR, _ANYWHERE = 0.8, 0.19, 0.01
_NEAR_SCALE = 0.25
_REMEMBERED_S = 1800.0  # half-life
# A rise from one so long time to the next, of so many deviations, goes on.
_RISE_S = 10
_SURE = 4.0
_BLOCK_S = 5  # replicas report once a second or more often, at moments of their own
_NEWEST = 0.02
_MOST_DISPERSION = 16.0  # a step's own height is no noise
_NEGLIGIBLE = 1e-7  # of a chance: without end, the highest rates would count for too much


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the rate may be, in requests/s, and the chance of each.

    dispersion: the variance of the requests of a second, in that of a Poisson stream.
    """

    rates: tuple[float, ...]
    chances: tuple[float, ...]
    dispersion: float


class Forecaster(Protocol):
    """What the policy asks for what arrives: Demand, or one who knows the load."""

    def add_second(self, requests: float) -> None:
        """Add the second that has passed. requests: of mean size, what others come to."""

    def forecast(self, ahead_s: float) -> Forecast | None:
        """Return what the rate may be after so many seconds; None before anything is known."""


class Demand:
    """A Bayesian filter over the rate of arrivals, which drifts and now and then jumps.

    Each second's requests make rates that would bring so many likelier (the likelihood is that of a
    Poisson stream, to the power of 1 / dispersion: arrivals in clumps prove less than even ones). A
    step is seen in seconds and noise averaged over a minute; while it is open which of them it is,
    both have their chances.
    """

    def __init__(self) -> None:
        self._chances = [1 / _LEVELS] * _LEVELS
        self._past = [1 / _LEVELS] * _LEVELS  # seconds that the rate was each, the old forgotten
        self._newest: deque[float] = deque(maxlen=2 * _RISE_S)
        self._block: list[float] = []
        self._last_block: float | None = None
        self._blocks = 0
        self._dispersion = 1.0

    def add_second(self, requests: float) -> None:
        """Take in how many came in the second that has passed."""
        self._measure(requests)
        self._newest.append(requests)
        likely = [
            (requests * log - rate) / self._dispersion
            for rate, log in zip(_RATES, _LOGS, strict=True)
        ]
        most = max(likely)
        weights = [
            before * math.exp(log - most) for before, log in zip(self._moved(), likely, strict=True)
        ]
        total = sum(weights)
        self._chances = [weight / total for weight in weights]
        kept = 0.5 ** (1 / _REMEMBERED_S)
        self._past = [
            past * kept + chance for past, chance in zip(self._past, self._chances, strict=True)
        ]

    def forecast(self, ahead_s: float) -> Forecast | None:
        """Return the rates with a chance that counts."""
        if not self._newest:
            return None
        rise = self._rise(ahead_s)
        pairs = [
            (rate + rise, chance)
            for rate, chance in zip(_RATES, self._chances, strict=True)
            if chance > _NEGLIGIBLE
        ]
        rates, chances = zip(*pairs, strict=True)
        return Forecast(rates, chances, self._dispersion)

    def _rise(self, ahead_s: float) -> float:
        """Return what a rise that is none by chance will add, by as much again at most."""
        if len(self._newest) < 2 * _RISE_S:
            return 0.0
        newest = list(self._newest)
        before, after = sum(newest[:_RISE_S]), sum(newest[_RISE_S:])
        if after - before < _SURE * math.sqrt(self._dispersion * (before + after)):
            return 0.0
        return (after - before) / _RISE_S * min(1.0, ahead_s / _RISE_S)

    def _moved(self) -> list[float]:
        """Return the chances a second later, before anything is known of it."""
        chances = self._chances
        fall = math.exp(-_STEP / _NEAR_SCALE)
        near = _spread(chances, fall)
        back = _BACK / sum(self._past)
        side = _DRIFT**2 / _STEP**2 / 2
        lower, upper = [chances[0], *chances[:-1]], [*chances[1:], chances[-1]]
        return [
            (1 - _JUMP) * (stay + side * (low + up - 2 * stay))
            + _JUMP * (back * past + _NEAR * close + _ANYWHERE / _LEVELS)
            for stay, low, up, past, close in zip(
                chances, lower, upper, self._past, near, strict=True
            )
        ]

    def _measure(self, requests: float) -> None:
        """Learn from the difference of every few seconds to those before, which no level moves."""
        self._block.append(requests)
        if len(self._block) < _BLOCK_S:
            return
        block, self._block = sum(self._block), []
        last, self._last_block = self._last_block, block
        if last is not None and block + last > 0:
            seen = min((block - last) ** 2 / (block + last), _MOST_DISPERSION)
            self._blocks += 1
            newest = max(_NEWEST, 1 / (self._blocks + 1))
            self._dispersion = max(1.0, self._dispersion + newest * (seen - self._dispersion))


def _spread(chances: list[float], fall: float) -> list[float]:
    """Return the chances, each spread to both sides, falling by this factor with every level."""
    below = above = 0.0
    spread = []
    for chance in chances:
        below = below * fall + chance
        spread.append(below)
    for level in range(len(chances) - 1, -1, -1):
        spread[level] += above
        above = (above + chances[level]) * fall
    share = (1 - fall) / (1 + fall)
    return [each * share for each in spread]
