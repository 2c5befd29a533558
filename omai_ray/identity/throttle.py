"""Slowing down who guesses passwords, before a hash is computed."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from omai_ray.errors import RateLimited

MAX_KEYS = 10_000
_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login under way; it counts as failed until it is forgiven."""

    source: str
    user: str
    at_s: float


class LoginThrottle:
    """Counts failed logins in a sliding window, by source and by user.

    per_user is above per_source, so that one guessing source cannot keep a user out elsewhere.
    A refused attempt does not count, and users that do not exist count like any other.
    clock: seconds, monotonic. Memory is bounded: the longest unused counters are dropped.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        per_source: int = 10,
        per_user: int = 30,
        window_s: float = 60.0,
    ) -> None:
        self._clock = clock
        self._limits = {"source": per_source, "user": per_user}
        self._window_s = window_s
        self._failures: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()

    def begin(self, source: str, user: str) -> Attempt:
        """Count an attempt; raise RateLimited, with Retry-After, where there were too many."""
        attempt = Attempt(source[:_NAME_LENGTH], user[:_NAME_LENGTH], self._clock())
        windows = [self._window(key, attempt.at_s) for key in _keys(attempt)]
        wait_s = max(
            self._wait_s(window, limit, attempt.at_s)
            for window, limit in zip(windows, self._limits.values(), strict=True)
        )
        if wait_s > 0:
            raise _refused(wait_s)
        for key, window in zip(_keys(attempt), windows, strict=True):
            window.append(attempt.at_s)
            self._failures[key] = window
            self._failures.move_to_end(key)
        while len(self._failures) > MAX_KEYS:
            self._failures.popitem(last=False)
        return attempt

    def forgive(self, attempt: Attempt) -> None:
        """Take back an attempt that succeeded, or that could not be decided."""
        for key in _keys(attempt):
            window = self._failures.get(key)
            if window and attempt.at_s in window:
                window.remove(attempt.at_s)
                if not window:
                    del self._failures[key]

    def _window(self, key: tuple[str, str], now_s: float) -> deque[float]:
        window = self._failures.get(key, deque())
        while window and window[0] <= now_s - self._window_s:
            window.popleft()
        return window

    def _wait_s(self, window: deque[float], limit: int, now_s: float) -> float:
        return window[-limit] + self._window_s - now_s if len(window) >= limit else 0.0


def _keys(attempt: Attempt) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("source", attempt.source), ("user", attempt.user)


def _refused(wait_s: float) -> RateLimited:
    seconds = max(1, math.ceil(wait_s))
    return RateLimited(
        f"Too many failed logins. Please try again in {seconds}s.",
        limited="requests",
        headers={"Retry-After": str(seconds), "retry-after-ms": str(math.ceil(wait_s * 1000))},
    )
