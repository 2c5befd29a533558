"""How much work arrives: the mean since it last changed, how it varies, and where it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LONGEST_S = 60
_PROBES_S = (2, 4, 8, 16)
# Deviations from the mean before that are a change and no chance: once in hours.
_CHANGE = 4.0
_TREND = 2.5
# The rate before a change counts as so many seconds: what is seen first is the extreme of chance.
_PRIOR_S = 3.0
_SHORTEST_TREND_S = 10
_BLOCK_S = 5  # replicas report once a second, at moments of their own
_NEWEST = 0.02
_MOST_DISPERSION = 10.0  # a step's own height is no noise
# Of requests of exponentially distributed sizes: E[size^2] / E[size]^2.
_SIZE_DISPERSION = 2.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Work that arrives, in tokens/s, and its variance in tokens^2/s."""

    tokens_per_s: float
    variance: float


class Demand:
    """Arrivals by the second, since the last change of their rate, a minute at most.

    A rate that leaves the mean of the seconds before by more than chance explains begins anew, so
    that a step is seen in seconds, and noise is averaged over a minute.
    """

    def __init__(self) -> None:
        self._prompts: list[float] = []
        self._requests: list[float] = []
        # A second's prompt tokens and requests before the last change.
        self._prior: tuple[float, float] | None = None
        self._block: list[float] = []
        self._last_block: float | None = None
        self._blocks = 0
        self._dispersion = 1.0  # variance, in that of a Poisson stream

    def add_second(self, prompt_tokens: float, requests: float, answer_tokens: float) -> None:
        """Add the second that has passed. answer_tokens: the mean of an answer, as far as known."""
        self._prompts.append(prompt_tokens)
        self._requests.append(requests)
        kept = _LONGEST_S
        tokens = self._tokens(answer_tokens)
        self._measure(tokens)
        for recent in _PROBES_S:
            if (
                len(tokens) >= 2 * recent
                and len(tokens) > _BLOCK_S
                and self._changed(tokens, recent)
            ):
                kept = recent
                before = len(tokens) - recent
                self._prior = (
                    sum(self._prompts[:before]) / before,
                    sum(self._requests[:before]) / before,
                )
                break
        del self._prompts[:-kept], self._requests[:-kept]

    def forecast(self, answer_tokens: float, ahead_s: float) -> Forecast:
        """Return what arrives after so many seconds, a rise going on that is none by chance."""
        tokens = self._tokens(answer_tokens)
        seconds = len(tokens)
        if not seconds:
            return Forecast(0.0, 0.0)
        variance = self._variance(tokens)
        mean = sum(tokens) / seconds
        if self._prior is not None:
            prior = self._prior[0] + self._prior[1] * answer_tokens
            weight = _PRIOR_S * (1 - seconds / _LONGEST_S)
            mean += (prior - mean) * weight / (seconds + weight)
        half = seconds // 2
        if half >= _SHORTEST_TREND_S:
            rise = (sum(tokens[-half:]) - sum(tokens[:half])) / half
            if rise > _TREND * math.sqrt(2 * variance / half):
                mean += min(rise / (seconds - half) * (seconds / 2 + ahead_s), rise)
        return Forecast(mean, variance)

    def _tokens(self, answer_tokens: float) -> list[float]:
        pairs = zip(self._prompts, self._requests, strict=True)
        return [prompt + requests * answer_tokens for prompt, requests in pairs]

    def _changed(self, tokens: list[float], recent: int) -> bool:
        before, after = tokens[:-recent], tokens[-recent:]
        variance = self._variance(tokens)
        difference = sum(after) / recent - sum(before) / len(before)
        return abs(difference) > _CHANGE * math.sqrt(variance * (1 / recent + 1 / len(before)))

    def _variance(self, tokens: list[float]) -> float:
        """Return the variance of a second's tokens.

        That of a Poisson stream is rate * E[size^2]; this one's is so many times as large.
        """
        total, count = sum(tokens), sum(self._requests)
        if not count:
            return 0.0
        return self._dispersion * _SIZE_DISPERSION * total * total / count / len(tokens)

    def _measure(self, tokens: list[float]) -> None:
        """Learn from the difference of every few seconds to those before, which no level moves."""
        self._block.append(tokens[-1])
        if len(self._block) < _BLOCK_S:
            return
        block, self._block = sum(self._block), []
        last, self._last_block = self._last_block, block
        poisson = self._variance(tokens) / self._dispersion * _BLOCK_S
        if last is not None and poisson:
            seen = min((block - last) ** 2 / 2 / poisson, _MOST_DISPERSION)
            self._blocks += 1
            newest = max(_NEWEST, 1 / (self._blocks + 1))
            self._dispersion = max(1.0, self._dispersion + newest * (seen - self._dispersion))
