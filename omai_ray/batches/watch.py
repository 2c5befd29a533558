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


class Watch:
    """A context in which `stopped` is done once nothing more of a batch should be answered."""

    def __init__(
        self,
        queue: BatchQueue,
        batch: Batch,
        every_s: float,
        clock: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._queue = queue
        self._batch = batch
        self._every_s = every_s
        self._clock = clock
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
                    now = await self._queue.read(self._batch.id)
                except OMAiError:
                    continue  # the database is away: what is at work goes on
            if now.outcome is not None or stop_of(now, self._clock()) is not None:
                return
