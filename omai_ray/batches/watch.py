"""Looking whether a batch goes on, beside the work on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from omai_ray.batches.queue import BatchQueue
from omai_ray.errors import OMAiError
from omai_ray.store import Batch

Stop = Literal["batch_cancelled", "batch_expired"]
Sleep = Callable[[float], Awaitable[None]]


def stop_of(batch: Batch, now_s: float) -> Stop | None:
    """Return why no more of a batch's lines should be answered, None where they should."""
    if batch.status == "cancelling":
        return "batch_cancelled"
    return "batch_expired" if now_s >= batch.expires else None


class Looks:
    """Looks whether batches go on, by one query at a time: who asks meanwhile shares the next."""

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue
        self._asked: set[str] = set()
        self._next: asyncio.Task[set[str]] | None = None
        self._turn = asyncio.Lock()

    async def is_over(self, batch: str) -> bool:
        """Whether nothing more of a batch should be answered. Raises OMAiError."""
        self._asked.add(batch)
        if self._next is None:
            self._next = asyncio.create_task(self._look())
        return batch in await asyncio.shield(self._next)

    async def _look(self) -> set[str]:
        async with self._turn:
            asked, self._asked, self._next = self._asked, set(), None
            return await self._queue.over(asked)


class Watch:
    """A context in which `stopped` is done once nothing more of a batch should be answered."""

    def __init__(self, looks: Looks, batch: str, every_s: float, sleep: Sleep) -> None:
        self._looks = looks
        self._batch = batch
        self._every_s = every_s
        self._sleep = sleep
        self._looking = asyncio.Lock()

    async def __aenter__(self) -> Watch:
        self.stopped = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        async with self._looking:  # a query that is cancelled costs its connection
            self.stopped.cancel()
        await asyncio.gather(self.stopped, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._sleep(self._every_s)
            async with self._looking:
                try:
                    if await self._looks.is_over(self._batch):
                        return
                except OMAiError:
                    continue  # the database is away: what is at work goes on
