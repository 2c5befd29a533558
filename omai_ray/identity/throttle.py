"""Slowing down who guesses passwords, before a hash is computed.

Each process counts what fails, and what is under way, in it; failures are in the database as well,
so that all processes count them together.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address, ip_network

from sqlalchemy import delete, insert, select

from omai_ray.errors import Overloaded, RateLimited
from omai_ray.identity.peppers import Peppers
from omai_ray.store import Store
from omai_ray.store.tables import login_failures

MAX_KEYS = 10_000
MAX_WAITING = 1000
PER_SOURCE = 10
PER_USER = 30
WINDOW_S = 60.0
_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login under way: from a source, as a user."""

    source: str
    user: str


@dataclass(slots=True)
class _Counter:
    """One source's, or user's, failures by time, and attempts that are under way."""

    failures: deque[float] = field(default_factory=deque)
    running: int = 0


class LoginThrottle:
    """Counts failed logins in a sliding window, by source and by user.

    per_user is above per_source, so that one guessing source cannot keep a user out elsewhere.
    An attempt that would be one too many if all under way failed waits for one of them to end. A
    refused attempt does not count, and users that do not exist count like any other.
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
        self._limits = (per_source, per_user)
        self._window_s = window_s
        self._counters: OrderedDict[tuple[str, str], _Counter] = OrderedDict()
        self._ended = asyncio.Event()
        self._waiting = 0

    async def begin(self, source: str, user: str) -> Attempt:
        """Return an attempt, to be ended; raise RateLimited, with Retry-After, after too many.

        Raises Overloaded where too many wait.
        """
        attempt = Attempt(source_group(source), user[:_NAME_LENGTH])
        while True:
            counters = [self._counter(key) for key in _keys(attempt)]
            now_s = self._clock()
            wait_s = max(map(self._wait_s, counters, self._limits, (now_s, now_s)))
            if wait_s > 0:
                raise refused(wait_s)
            if all(
                len(c.failures) + c.running < n for c, n in zip(counters, self._limits, strict=True)
            ):
                break
            await self._until_one_ends()
        for counter in counters:
            counter.running += 1
        return attempt

    def end(self, attempt: Attempt, *, failed: bool) -> None:
        """Say how an attempt ended; one that could not be decided has not failed."""
        for key in _keys(attempt):
            counter = self._counter(key)
            counter.running = max(0, counter.running - 1)
            if failed:
                counter.failures.append(self._clock())
            elif not counter.failures and not counter.running:
                del self._counters[key]
        self._ended.set()

    async def _until_one_ends(self) -> None:
        if self._waiting >= MAX_WAITING:
            raise Overloaded("Too many logins at once. Please try again.")
        self._waiting += 1
        try:
            self._ended.clear()
            await self._ended.wait()
        finally:
            self._waiting -= 1

    def _counter(self, key: tuple[str, str]) -> _Counter:
        counter = self._counters.setdefault(key, _Counter())
        self._counters.move_to_end(key)
        over_s = self._clock() - self._window_s
        while counter.failures and counter.failures[0] <= over_s:
            counter.failures.popleft()
        while len(self._counters) > MAX_KEYS:
            self._counters.popitem(last=False)
        return counter

    def _wait_s(self, counter: _Counter, limit: int, now_s: float) -> float:
        failures = counter.failures
        return failures[-limit] + self._window_s - now_s if len(failures) >= limit else 0.0


def _keys(attempt: Attempt) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("source", attempt.source), ("user", attempt.user)


def source_group(source: str) -> str:
    """Return what a source is counted as: IPv6 by its network, of which one client has a whole."""
    try:
        address = ip_address(source)
    except ValueError:
        return source[:_NAME_LENGTH]
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)


class SharedFailures:
    """The failed logins of the last minute, on every replica.

    clock: seconds since the epoch. peppers: names are kept as MACs under the current one, because
    a name that was typed may be a password by mistake.
    """

    def __init__(self, store: Store, clock: Callable[[], float], peppers: Peppers) -> None:
        self._store = store
        self._clock = clock
        self._peppers = peppers

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
        return hmac.new(self._peppers.current, name.encode(), hashlib.sha256).hexdigest()


def refused(wait_s: float) -> RateLimited:
    """Return the error for too many failures."""
    seconds = max(1, math.ceil(wait_s))
    return RateLimited(
        f"Too many failed logins. Please try again in {seconds}s.",
        limited="requests",
        headers={"Retry-After": str(seconds), "retry-after-ms": str(math.ceil(wait_s * 1000))},
    )
