"""Workers of batches, kept from one batch to the next: what a worker holds takes long to load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from omai_ray.errors import Overloaded
from omai_ray.store import BatchUnit

UNITS_AT_ONCE = 2
"""Of a worker: while the last lines of one are answered, the next one's fill what is free."""
OPEN_S = 600.0
"""How long a worker may take to be ready, and to be given room before that."""

_log = logging.getLogger(__name__)


class WorkerDied(Exception):
    """A worker is not there any more, whatever it was doing."""


class Worker(Protocol):
    """Answers units, in a process of its own."""

    async def open(self) -> None:
        """Get ready. Called once, before anything else; raises what that fails by."""

    async def do(self, unit: BatchUnit) -> str | None:
        """Answer a unit; return why it could not be done. Raises WorkerDied."""

    def end(self) -> None:
        """End the process, and with it what it is doing."""


@dataclass(eq=False)
class _Place:
    """A worker that is ready. units: under way. ending: its end, while it has nothing to do.

    used: whether it was given a unit yet; none ends for another pool before that.
    """

    worker: Worker
    units: int = 0
    used: bool = False
    ending: asyncio.TimerHandle | None = None


class Room:
    """What the workers of several pools take, and which pools wait for others' to be free."""

    def __init__(self) -> None:
        self._wanting: set[WorkerPool] = set()
        self._changed = asyncio.Event()

    def is_wanted_beside(self, pool: WorkerPool) -> bool:
        """Whether another pool waits for it."""
        return bool(self._wanting - {pool})

    def want(self, pool: WorkerPool) -> None:
        """Have the other pools' workers end with their units, until `found`."""
        self._wanting.add(pool)

    def found(self, pool: WorkerPool) -> None:
        """Note that a pool waits no more."""
        self._wanting.discard(pool)
        self.tell()

    def tell(self) -> None:
        """Wake all that wait for a worker."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changes(self) -> None:
        """Return once something may be otherwise."""
        await self._changed.wait()


class WorkerPool:
    """Workers that do the same, shared by all batches that need what they do.

    make: starts one. most: how many there may be. idle_s: one that has had nothing to do for so
    long ends. room: what it shares with other pools.
    """

    def __init__(
        self, make: Callable[[], Awaitable[Worker]], most: int, idle_s: float, room: Room
    ) -> None:
        self._make = make
        self._most = most
        self._idle_s = idle_s
        self._room = room
        self._places: list[_Place] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._runs = self._waiting = 0
        self._turn = asyncio.Lock()
        self._failure: str | None = None

    def __len__(self) -> int:
        """Return how many workers are ready."""
        return len(self._places)

    @property
    def empty(self) -> bool:
        """Whether there is no worker, and none is wanted."""
        return not (self._places or self._starting or self._runs)

    async def run(self, units: Sequence[BatchUnit]) -> None:
        """Return once each unit was tried. Raises Overloaded where no worker can be started."""
        left = iter(units)
        self._failure = None
        self._runs += 1
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(units), self._most * UNITS_AT_ONCE)):
                    group.create_task(self._feed(left))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            self._runs -= 1
            if not self._runs:
                self._end_starting()

    def end_idle(self) -> None:
        """End the workers that have nothing to do now."""
        wanted = self._waiting > 0
        for place in [p for p in self._places if not p.units and (p.used or not wanted)]:
            self._end(place)

    def close(self) -> None:
        """End all workers."""
        self._end_starting()
        for place in list(self._places):
            self._end(place)

    async def _feed(self, left: Iterator[BatchUnit]) -> None:
        # So many of a batch wait at once, not all of its units: batches take turns.
        for unit in left:
            place = await self._take()
            try:
                failure = await place.worker.do(unit)
            except WorkerDied:
                failure = "its worker has died"
                self._end(place)
            finally:
                self._give_back(place)
            if failure is not None:
                _log.warning(
                    "%s: unit %d is left for later: %s", unit.batch_id, unit.number, failure
                )

    async def _take(self) -> _Place:
        """Return a worker with room for a unit, in the order of asking."""
        self._waiting += 1
        try:
            self._begin_start()
            async with self._turn:
                while (place := self._free()) is None:
                    self._begin_start()
                    makes_way = self._room.is_wanted_beside(self)
                    if not (self._places or self._starting or makes_way):
                        raise Overloaded(f"no worker could be started: {self._failure}")
                    await self._room.changes()
        finally:
            self._waiting -= 1
        place.units += 1
        place.used = True
        if place.ending is not None:
            place.ending.cancel()
        return place

    def _free(self) -> _Place | None:
        makes_way = self._room.is_wanted_beside(self)
        places = [place for place in self._places if not (place.used and makes_way)]
        place = min(places, key=lambda place: place.units, default=None)
        return None if place is None or place.units == UNITS_AT_ONCE else place

    def _give_back(self, place: _Place) -> None:
        place.units -= 1
        if place.units == 0 and place.used and self._room.is_wanted_beside(self):
            self._end(place)
        elif place.units == 0 and place in self._places:
            loop = asyncio.get_running_loop()
            place.ending = loop.call_later(self._idle_s, self._end, place)
        self._room.tell()

    def _begin_start(self) -> None:
        """Start one more where there may be, and more wait than there are without a unit."""
        if self._room.is_wanted_beside(self):
            return
        unused = sum(not place.units for place in self._places) + len(self._starting)
        count = len(self._places) + len(self._starting)
        if self._waiting > unused and count < self._most and self._failure is None:
            task = asyncio.create_task(self._start())
            self._starting.add(task)
            task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        self._room.found(self)

    async def _start(self) -> None:
        worker: Worker | None = None
        try:
            worker = await self._make()
            async with asyncio.timeout(OPEN_S):
                await worker.open()
        except BaseException as error:
            if worker is not None:
                worker.end()
            if not isinstance(error, Exception):
                raise
            _log.warning("a batch's worker could not be started", exc_info=error)
            self._failure = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                self._failure = f"it was not ready within {OPEN_S:g} s"
            return
        place = _Place(worker, units=1)
        self._places.append(place)
        self._give_back(place)

    def _end_starting(self) -> None:
        for task in self._starting:
            task.cancel()

    def _end(self, place: _Place) -> None:
        if place in self._places:
            self._places.remove(place)
            if place.ending is not None:
                place.ending.cancel()
            place.worker.end()
