from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import groupby

import pytest

from deployments.batch_pool import UNITS_AT_ONCE, Room, WorkerDied, WorkerPool
from omai_ray.errors import Overloaded
from omai_ray.store import BatchUnit


def units(count: int, batch: str = "batch_a") -> list[BatchUnit]:
    """Return a batch's units."""
    return [BatchUnit(batch, number, 0, 1, 1, 1, None, None) for number in range(count)]


class Fake:
    """A worker; it dies at its unit number `dies_at`, and cannot be opened where `broken`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ended = False

    async def open(self) -> None:
        await self._world.may_open.wait()
        if self._world.broken:
            raise ValueError("no such checkpoint")

    async def do(self, unit: BatchUnit) -> str | None:
        world = self._world
        world.running.append(self)
        world.most = max(world.most, world.running.count(self))
        try:
            await world.may_answer.wait()
            await asyncio.sleep(0)
            if unit.number == world.dies_at:
                world.dies_at = None
                raise WorkerDied
        finally:
            world.running.remove(self)
        world.done.append((unit.batch_id, unit.number))
        return None

    def end(self) -> None:
        assert not self.ended
        self.ended = True


class World:
    """Workers of a pool, and what they have done."""

    def __init__(self) -> None:
        self.workers: list[Fake] = []
        self.running: list[Fake] = []
        self.done: list[tuple[str, int]] = []
        self.most = 0
        self.broken = False
        self.dies_at: int | None = None
        self.may_open, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_open.set()
        self.may_answer.set()

    async def make(self) -> Fake:
        self.workers.append(Fake(self))
        return self.workers[-1]

    def is_busy(self, units: int) -> bool:
        """Whether so many units are under way."""
        return len(self.running) == units

    def alive(self) -> int:
        """Return how many workers there are."""
        return sum(not worker.ended for worker in self.workers)


async def until(holds: Callable[[], bool]) -> None:
    """Let others go on until something holds."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what holds is not of the loop's making
            await asyncio.sleep(0.001)


async def test_a_worker_stays_for_the_next_batch_and_ends_once_it_is_idle() -> None:
    """It is started for the first unit only."""
    world = World()
    pool = WorkerPool(world.make, 1, idle_s=0.01, room=Room())
    await pool.run(units(5))
    await pool.run(units(5, "batch_b"))
    assert 1 == len(world.workers)
    assert 10 == len(set(world.done))
    assert UNITS_AT_ONCE == world.most
    assert not pool.empty
    await until(lambda: pool.empty)
    assert 0 == world.alive()
    await pool.run(units(1, "batch_c"))
    assert 2 == len(world.workers)
    pool.close()
    assert 0 == world.alive()


async def test_there_are_no_more_workers_than_units_or_than_may_be() -> None:
    """A unit goes to a worker of its own while there may be one."""
    for count, most, expected in ((1, 3, 1), (2, 3, 2), (9, 3, 3)):
        world = World()
        world.may_answer.clear()
        pool = WorkerPool(world.make, most, idle_s=60, room=Room())
        running = asyncio.create_task(pool.run(units(count)))
        await until(partial(world.is_busy, min(count, UNITS_AT_ONCE * most)))
        world.may_answer.set()
        await running
        assert expected == len(world.workers)
        pool.close()


async def test_a_unit_whose_worker_dies_is_left_and_the_others_go_on_with_another() -> None:
    """It is for the next run, as any that could not be done."""
    world = World()
    world.dies_at = 1
    pool = WorkerPool(world.make, 1, idle_s=60, room=Room())
    await pool.run(units(6))
    assert {0, 2, 3, 4, 5} == {number for _, number in world.done}
    assert (2, 1) == (len(world.workers), world.alive())
    pool.close()


async def test_without_any_worker_a_run_fails_and_the_next_tries_anew() -> None:
    """The error says why; one start is tried in a run, not one for each unit."""
    world = World()
    world.broken = True
    pool = WorkerPool(world.make, 1, idle_s=60, room=Room())
    with pytest.raises(Overloaded, match="no such checkpoint"):
        await pool.run(units(6))
    assert (1, 0) == (len(world.workers), world.alive())
    world.broken = False
    await pool.run(units(6))
    assert 6 == len(world.done)
    pool.close()


async def test_batches_take_turns() -> None:
    """A small one does not wait for all units of a large one."""
    world = World()
    world.may_open.clear()
    pool = WorkerPool(world.make, 1, idle_s=60, room=Room())
    large = asyncio.create_task(pool.run(units(50)))
    small = asyncio.create_task(pool.run(units(2, "batch_b")))
    await asyncio.sleep(0)
    world.may_open.set()
    await small
    assert len(world.done) < 20
    await large
    assert 52 == len(set(world.done))
    pool.close()


async def test_a_run_that_is_cancelled_frees_its_worker_and_ends_what_is_still_starting() -> None:
    """The worker is another's then; a start that hangs for want of room holds nothing."""
    world = World()
    world.may_answer.clear()
    pool = WorkerPool(world.make, 2, idle_s=60, room=Room())
    running = asyncio.create_task(pool.run(units(1)))
    await until(lambda: bool(world.running))
    world.may_open.clear()
    more = asyncio.create_task(pool.run(units(4, "batch_b")))
    await until(lambda: 2 == len(world.workers))
    for task in (running, more):
        task.cancel()
    await asyncio.gather(running, more, return_exceptions=True)
    await until(lambda: 1 == world.alive())
    assert [] == world.running
    world.may_open.set()
    world.may_answer.set()
    await pool.run(units(1, "batch_c"))
    assert [("batch_c", 0)] == world.done
    pool.end_idle()
    assert 0 == world.alive()
    assert pool.empty


async def test_a_start_that_hangs_fails_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster may never have room; the worker that waits for it ends."""
    monkeypatch.setattr("deployments.batch_pool.OPEN_S", 0.01)
    world = World()
    world.may_open.clear()
    pool = WorkerPool(world.make, 1, idle_s=60, room=Room())
    with pytest.raises(Overloaded, match=r"not ready within 0\.01 s"):
        await pool.run(units(3))
    assert (1, 0) == (len(world.workers), world.alive())
    assert pool.empty


async def test_workers_that_are_never_idle_make_way_for_another_pools_start() -> None:
    """Each of two pools gets the room for one worker in turns, and both are done."""
    worlds = World(), World()
    worlds[1].done = done = worlds[0].done
    pools: list[WorkerPool] = []
    room = Room()
    free = asyncio.Semaphore(1)

    def pool_of(world: World) -> WorkerPool:
        class InTheRoom(Fake):
            held = False

            async def open(self) -> None:
                await free.acquire()
                self.held = True

            def end(self) -> None:
                super().end()
                if self.held:
                    free.release()

        async def make() -> Fake:
            world.workers.append(InTheRoom(world))
            if free.locked():
                for each in pools:
                    if each is not pool:
                        each.end_idle()
                room.want(pool)
            return world.workers[-1]

        pool = WorkerPool(make, 1, idle_s=60, room=room)
        pools.append(pool)
        return pool

    one, other = map(pool_of, worlds)
    worlds[0].may_answer.clear()
    first = asyncio.create_task(one.run(units(40)))
    await until(partial(worlds[0].is_busy, UNITS_AT_ONCE))
    second = asyncio.create_task(other.run(units(40, "batch_b")))
    await until(lambda: bool(worlds[1].workers))
    worlds[0].may_answer.set()
    async with asyncio.timeout(10):
        await asyncio.gather(first, second)
    order = [batch for batch, _ in done]
    turns = ["batch_a"] * UNITS_AT_ONCE + ["batch_b"] * UNITS_AT_ONCE
    assert turns == order[: len(turns)]
    assert len(list(groupby(order))) > 4
    assert 80 == len(set(done))
    for pool in pools:
        pool.close()
    assert 0 == worlds[0].alive() + worlds[1].alive()
