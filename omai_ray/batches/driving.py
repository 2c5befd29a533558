"""Taking work that others may have begun from state to state, for as long as it is one's own."""

from __future__ import annotations

import asyncio
import logging
import secrets
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from omai_ray.batches.leases import LeaseLost, Leases, Work
from omai_ray.batches.watch import Sleep
from omai_ray.errors import OMAiError

LEASE_S = 15.0
POLL_S = 1.0
SWEEP_S = 600.0
OBSERVE_S = 10.0
_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_log = logging.getLogger(__name__)

Driven = TypeVar("Driven", bound=Work)


class Driving(Generic[Driven]):
    """Drives what of a table there is; of any number of drivers, each row has one.

    A kind of it says what a step is, what is swept from time to time, and what is told of all.
    """

    def __init__(
        self, leases: Leases[Driven], *, lease_s: float, poll_s: float, sleep: Sleep
    ) -> None:
        self.holder = secrets.token_hex(16)
        self._leases = leases
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._sleep = sleep
        self._driving: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Drive until cancelled, however often the database or the storage is away."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._again(self._claim, self._poll_s))
                group.create_task(self._again(self._renew, self._lease_s / 3))
                group.create_task(self._again(self._sweep, SWEEP_S))
                group.create_task(self._again(self.observe, OBSERVE_S))
        finally:
            for task in self._driving.values():
                task.cancel()
            await asyncio.gather(*self._driving.values(), return_exceptions=True)

    async def observe(self) -> None:
        """Tell the recorder what there is to do, and what was done."""
        raise NotImplementedError

    async def _sweep(self) -> None:
        """Remove what work that has ended left."""
        raise NotImplementedError

    async def _step(self, name: str) -> bool:
        """Take a row one state further; whether that was its last one."""
        raise NotImplementedError

    def _leave(self, name: str) -> None:
        """Forget what was noted of a row that is driven no more."""
        raise NotImplementedError

    async def _again(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            try:
                await work()
            except OMAiError as error:
                _log.warning("batches: %s", error.message)
            except Exception:
                _log.exception("batches")
            await self._sleep(every_s)

    async def _claim(self) -> None:
        for work in await self._leases.claim(self.holder, self._lease_s):
            if work.id not in self._driving:  # claimed anew, where renewing came late
                task = asyncio.create_task(self.drive(work))
                self._driving[work.id] = task
                task.add_done_callback(partial(self._ended, work.id))

    def _ended(self, name: str, _: asyncio.Task[None]) -> None:
        self._driving.pop(name, None)

    async def _renew(self) -> None:
        driven = set(self._driving)
        if not driven:
            return
        held = await self._leases.renew(self.holder, driven, self._lease_s)
        for name in driven - held:
            if name in self._driving:  # it has ended meanwhile, or is another driver's
                self._driving[name].cancel()

    async def drive(self, work: Driven) -> None:
        """Take it to its end, or as far as it is this driver's."""
        try:
            await self._patiently(work.id)
        finally:
            self._leave(work.id)

    async def _patiently(self, name: str) -> None:
        """Take it from state to state, trying each as often as it takes."""
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                if await self._step(name):
                    return
                retry_s = _FIRST_RETRY_S
            except LeaseLost:
                return
            except Exception as error:
                # Without its message, which may have a caller's text.
                kind = type(error).__name__
                trace = "".join(traceback.format_tb(error.__traceback__))
                _log.warning("%s: %s: tried again in %.0f s\n%s", name, kind, retry_s, trace)
                await self._sleep(retry_s)
                retry_s = min(_LAST_RETRY_S, retry_s * 2)
