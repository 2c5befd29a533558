"""Many small requests for vectors as fewer, larger calls: a call's cost is shared."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from omai_ray.api.backends import EmbeddingBackend
from omai_ray.errors import OMAiError, Overloaded

Vectors = npt.NDArray[np.float32]
MOST_INPUTS = 256
CALLS_AT_ONCE = 4


class _Asked(NamedTuple):
    account: str
    inputs: list[list[int]]
    vectors: asyncio.Future[Vectors]


class GatheringBackend:
    """Implements EmbeddingBackend over another one.

    What is asked while as many calls as may be are under way waits, and shares one with what else
    waits of its account.
    most_inputs: of a call that several share. calls_at_once: how many may be under way.
    """

    def __init__(
        self,
        backend: EmbeddingBackend,
        most_inputs: int = MOST_INPUTS,
        calls_at_once: int = CALLS_AT_ONCE,
    ) -> None:
        self._backend = backend
        self._most_inputs = most_inputs
        self._calls_at_once = calls_at_once
        self._waiting: deque[_Asked] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def embed(self, inputs: list[list[int]], account: str) -> Vectors:
        """Return float32 [N, D] for N inputs of token ids."""
        loop = asyncio.get_running_loop()
        asked = _Asked(account, inputs, loop.create_future())
        self._waiting.append(asked)
        loop.call_soon(self._begin)  # after what else is asked in this turn of the loop
        return await asked.vectors

    async def ready(self) -> None:
        """Return once a replica answers."""
        await self._backend.ready()

    def _begin(self) -> None:
        while self._waiting and len(self._calls) < self._calls_at_once:
            call = asyncio.create_task(self._call(self._next()))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._begin()

    def _next(self) -> list[_Asked]:
        """Return what shares a call: whoever waits longest, and as many of its account as may."""
        taken: list[_Asked] = []
        inputs = 0
        waiting, self._waiting = self._waiting, deque()
        for asked in waiting:
            if asked.vectors.cancelled():
                continue
            fits = inputs + len(asked.inputs) <= self._most_inputs
            if not taken or (fits and asked.account == taken[0].account):
                taken.append(asked)
                inputs += len(asked.inputs)
            else:
                self._waiting.append(asked)
        return taken

    async def _call(self, taken: list[_Asked]) -> None:
        try:
            await self._ask(taken)
        except BaseException:  # nobody may wait for what is no longer done
            for asked in taken:
                _fail(asked.vectors, Overloaded("The call was given up. Please try again."))
            raise

    async def _ask(self, taken: list[_Asked]) -> None:
        try:
            joined = [ids for asked in taken for ids in asked.inputs]
            vectors = await self._backend.embed(joined, taken[0].account) if joined else None
        except Exception as error:  # handed to those who asked
            if len(taken) > 1 and not isinstance(error, Overloaded):
                for asked in taken:  # one of them is at fault, and only that one fails
                    await self._ask([asked])
                return
            for asked in taken:
                _fail(asked.vectors, error)
            return
        start = 0
        for asked in taken:
            stop = start + len(asked.inputs)
            if vectors is not None and not asked.vectors.done():
                asked.vectors.set_result(vectors[start:stop])
            start = stop


def _fail(future: asyncio.Future[Vectors], error: Exception) -> None:
    """Give each an error of its own: one that several raise gathers all their tracebacks."""
    if not future.done():
        own = error.with_traceback(None) if not isinstance(error, OMAiError) else _copy(error)
        future.set_exception(own)


def _copy(error: OMAiError) -> OMAiError:
    rebuild, arguments = error.__reduce__()
    copied: OMAiError = rebuild(*arguments)
    return copied
