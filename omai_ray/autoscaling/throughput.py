"""What a full replica does, learned from what replicas do that are not full."""

from __future__ import annotations

_HALF_LIFE_S = 600.0
# Concurrency has to vary by this part of a full batch before the slope seen is trusted.
_TRUSTED_SPREAD = 0.15


class ThroughputCurve:
    """A replica's tokens a second by its concurrency, a straight line for the time of a token.

    A step of continuous batching takes `fixed + each * batch` seconds and gives every sequence of
    the batch a token: so running seconds for each token are linear in the concurrency. The line is
    fitted by least squares, weighted by running time, the old forgotten. As long as all was
    measured at much the same concurrency, a token is taken to need twice the fixed time in a full
    batch.
    """

    def __init__(self, full_requests: float) -> None:
        self._full = full_requests
        self._weight = 0.0
        self._concurrency = 0.0  # weighted means
        self._token_s = 0.0
        self._spread = 0.0  # weighted mean square and product of the deviations
        self._product = 0.0

    def observe(self, seconds: float, running_s: float, tokens: float) -> None:
        """Take in what one replica did in so many seconds."""
        if running_s <= 0.0 or tokens <= 0.0:
            return
        concurrency, token_s = running_s / seconds, running_s / tokens
        old = self._weight * 0.5 ** (running_s / (_HALF_LIFE_S * self._full))
        self._weight = old + running_s
        share = running_s / self._weight
        off, off_s = concurrency - self._concurrency, token_s - self._token_s
        self._concurrency += share * off
        self._token_s += share * off_s
        self._spread = (1 - share) * (self._spread + share * off * off)
        self._product = (1 - share) * (self._product + share * off * off_s)

    @property
    def full_tokens_per_s(self) -> float | None:
        """What a replica with a full batch does; None before anything was seen."""
        if not self._weight:
            return None
        supposed = self._token_s / (self._full + self._concurrency)
        trust = (_TRUSTED_SPREAD * self._full) ** 2
        slope = (self._product + trust * supposed) / (self._spread + trust)
        slope = min(max(slope, 0.0), self._token_s / self._concurrency)
        return self._full / (self._token_s + slope * (self._full - self._concurrency))
