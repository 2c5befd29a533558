"""Whether an engine that has work still gets on with it."""

from __future__ import annotations

import time
from collections.abc import Callable

from omai_ray.errors import ServerError


class Heartbeat:
    """Notes when an engine last got on, as long as it has work.

    limit_s: how long one step may take. An engine is not slow but wedged where it takes longer,
    as when a driver call never returns. An idle engine has nothing to get on with.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._since: float | None = None

    def begin(self) -> None:
        """Note that there is work, from now on if there was none."""
        if self._since is None:
            self._since = self._clock()

    def beat(self) -> None:
        """Note that a step has ended, or that one begins."""
        self._since = self._clock()

    def rest(self) -> None:
        """Note that there is no work."""
        self._since = None

    def check(self) -> None:
        """Raise ServerError where the engine is wedged."""
        since = self._since
        if since is not None and self._clock() - since > self._limit_s:
            raise ServerError(f"the engine has not ended a step in {self._limit_s:g} s")
