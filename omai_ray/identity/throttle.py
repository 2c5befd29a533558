"""Slowing down who guesses passwords, before a hash is computed.

Each process counts the attempts that are under way in it; failures are in the database as well, so
that all processes count them together.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from omai_ray.errors import RateLimited
from omai_ray.store import Store
from omai_ray.store.tables import login_failures

MAX_KEYS = 10_000
PER_SOURCE = 10
PER_USER = 30
WINDOW_S = 60.0
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
        per_source: int = PER_SOURCE,
        per_user: int = PER_USER,
        window_s: float = WINDOW_S,
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
            raise refused(wait_s)
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


class SharedFailures:
    """The failed logins of the last minute, on every replica.

    clock: seconds since the epoch. pepper: names are kept as MACs under it, because a name that was
    typed may be a password by mistake.
    """

    def __init__(self, store: Store, clock: Callable[[], float], pepper: bytes) -> None:
        self._store = store
        self._clock = clock
        self._pepper = pepper

    async def check(self, attempt: Attempt) -> None:
        """Raise RateLimited, with Retry-After, where there were too many."""
        now_s = self._clock()
        counted = (
            (login_failures.c.source == attempt.source, PER_SOURCE),
            (login_failures.c.user_mac == self._mac(attempt.user), PER_USER),
        )
        wait_s = 0.0
        async with self._store.reading() as connection:
            for matches, limit in counted:
                statement = (
                    select(login_failures.c.at)
                    .where(matches, login_failures.c.at > now_s - WINDOW_S)
                    .order_by(login_failures.c.at.desc())
                    .offset(limit - 1)
                    .limit(1)
                )
                oldest_s = await connection.scalar(statement)
                if oldest_s is not None:
                    wait_s = max(wait_s, oldest_s + WINDOW_S - now_s)
        if wait_s > 0:
            raise refused(wait_s)

    async def add(self, attempt: Attempt) -> None:
        """Count a failure, and remove those that no longer count."""
        now_s = self._clock()
        row = {
            "id": secrets.token_hex(16),
            "at": now_s,
            "source": attempt.source,
            "user_mac": self._mac(attempt.user),
        }
        async with self._store.writing() as connection:
            old = login_failures.c.at <= now_s - WINDOW_S
            await connection.execute(delete(login_failures).where(old))
            await connection.execute(insert(login_failures).values(**row))

    def _mac(self, name: str) -> str:
        return hmac.new(self._pepper, name.encode(), hashlib.sha256).hexdigest()


def refused(wait_s: float) -> RateLimited:
    """Return the error for too many failures."""
    seconds = max(1, math.ceil(wait_s))
    return RateLimited(
        f"Too many failed logins. Please try again in {seconds}s.",
        limited="requests",
        headers={"Retry-After": str(seconds), "retry-after-ms": str(math.ceil(wait_s * 1000))},
    )
