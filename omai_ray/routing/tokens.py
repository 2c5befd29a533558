"""The choice for embeddings: the replica with the fewest tokens before it.

Requests differ a thousandfold in size, so that their number says little.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

_SMOOTHING = 0.05  # how much the latest request counts in the mean


class QueuedTokens:
    """What one process has sent to replicas that have not answered yet.

    Of the requests that other processes sent, only the number is known; they count as many tokens
    as this process's requests have on average.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - spreads load
        self._tokens: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._mean = 0.0

    def rank(self, ongoing: Mapping[str, int]) -> list[str]:
        """Return replicas, the one with the fewest tokens first.

        ongoing: replica -> how many requests it is at, from whomever.
        """

        def queued(name: str) -> tuple[float, float]:
            others = max(ongoing[name] - self._requests[name], 0)
            return self._tokens[name] + others * self._mean, self._rng.random()

        return sorted(ongoing, key=queued)

    def begin(self, replica: str, tokens: int) -> None:
        """Note that a request went to a replica."""
        self._tokens[replica] += tokens
        self._requests[replica] += 1
        self._mean += (tokens - self._mean) * (_SMOOTHING if self._mean else 1.0)

    def end(self, replica: str, tokens: int) -> None:
        """Note that it was answered, or failed."""
        self._tokens[replica] -= tokens
        self._requests[replica] -= 1
        if not self._requests[replica]:
            del self._tokens[replica], self._requests[replica]
