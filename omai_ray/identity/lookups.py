"""A small cache of what the database said about a key, a user or a session.

Found entries are believed for a few seconds: a revoked key then stops working on every replica.
Absent ones are never remembered: a new key works at once. While the database is away, an entry
bridges up to a minute, and callers without one are refused at once instead of queueing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from omai_ray.errors import Overloaded
from omai_ray.store.store import overloaded

V = TypeVar("V")
OUTAGE_TTL_S = 60.0
PATIENCE_S = 0.2
_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class _Known(Generic[V]):
    value: V
    asked_at_s: float


class Lookups(Generic[V]):
    """Loads entries by id: once for all who ask at the same time.

    clock: seconds, monotonic. ttl_s: how long an entry is believed without asking again.
    patience_s: how long a caller waits for a slow database when an older entry can answer;
    answer_s: how long one does for whom there is none, and who then is answered 503.
    """

    def __init__(
        self,
        load: Callable[[str], Coroutine[Any, Any, V | None]],
        clock: Callable[[], float],
        ttl_s: float = 5.0,
        max_entries: int = 10_000,
        patience_s: float = PATIENCE_S,
        answer_s: float | None = None,
    ) -> None:
        self._load = load
        self._clock = clock
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._patience_s = patience_s
        self._answer_s = answer_s
        self._known: OrderedDict[str, _Known[V]] = OrderedDict()
        self._loading: dict[str, asyncio.Task[V | None]] = {}
        self._tasks: set[asyncio.Task[V | None]] = set()
        self._away_until_s = float("-inf")

    async def get(self, name: str) -> V | None:
        """Return the entry, None where there is none; raise Overloaded if nobody can tell."""
        now_s = self._clock()
        known = self._known.get(name)
        age_s = now_s - known.asked_at_s if known else float("inf")
        if known and age_s < self._ttl_s:
            return known.value
        bridge = known if age_s < OUTAGE_TTL_S else None
        if now_s < self._away_until_s:
            if bridge is None:
                raise overloaded()
            return bridge.value
        task = self._loading.get(name) or self._start(name)
        await asyncio.wait({task}, timeout=self._answer_s if bridge is None else self._patience_s)
        if bridge is not None and (not task.done() or isinstance(task.exception(), Overloaded)):
            return bridge.value
        if not task.done():
            raise overloaded()
        return task.result()

    def forget(self, name: str) -> None:
        """Ask again next time, even if an answer is on its way: it may predate a change."""
        self._known.pop(name, None)
        self._loading.pop(name, None)

    def forget_all(self) -> None:
        """Ask again next time, whatever it is."""
        self._known.clear()
        self._loading.clear()

    async def close(self) -> None:
        """Cancel what is being loaded."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, name: str) -> asyncio.Task[V | None]:
        task = asyncio.create_task(self._load(name))
        asked_at_s = self._clock()
        self._loading[name] = task
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish(name, asked_at_s, done))
        return task

    def _finish(self, name: str, asked_at_s: float, task: asyncio.Task[V | None]) -> None:
        self._tasks.discard(task)
        current = self._loading.get(name) is task
        if current:
            del self._loading[name]
        if task.cancelled():
            return
        if error := task.exception():
            if isinstance(error, Overloaded):
                self._away_until_s = self._clock() + _RETRY_AFTER_S
            return
        value = task.result()
        if current and value is None:
            self._known.pop(name, None)
        elif current and value is not None:
            self._known[name] = _Known(value, asked_at_s)
            self._known.move_to_end(name)
            while len(self._known) > self._max_entries:
                self._known.popitem(last=False)
