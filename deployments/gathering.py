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
    inputs: list[list[int]]
    vectors: asyncio.Future[Vectors]


class GatheringBackend:
    """Implements EmbeddingBackend over another one, for the requests of one account.

    What is asked while as many calls as may be are under way waits, and shares the next one.
    """

    def __init__(self, backend: EmbeddingBackend) -> None:
        self._backend = backend
        self._waiting: deque[_Asked] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def embed(self, inputs: list[list[int]], account: str) -> Vectors:
        """Return float32 [N, D] for N inputs of token ids."""
        loop = asyncio.get_running_loop()
        asked = _Asked(inputs, loop.create_future())
        self._waiting.append(asked)
        loop.call_soon(self._begin, account)  # after what else is asked in this turn of the loop
        return await asked.vectors

    async def ready(self) -> None:
        """Return once a replica answers."""
        await self._backend.ready()

    def _begin(self, account: str) -> None:
        while self._waiting and len(self._calls) < CALLS_AT_ONCE:
            call = asyncio.create_task(self._call(self._next(), account))
            self._calls.add(call)
            call.add_done_callback(lambda done: self._ended(done, account))

    def _ended(self, call: asyncio.Task[None], account: str) -> None:
        self._calls.discard(call)
        self._begin(account)

    def _next(self) -> list[_Asked]:
        """Return what shares a call: one request at least, and no more inputs than may be."""
        taken: list[_Asked] = []
        inputs = 0
        while self._waiting:
            asked = self._waiting[0]
            if asked.vectors.cancelled():
                self._waiting.popleft()
                continue
            if taken and inputs + len(asked.inputs) > MOST_INPUTS:
                break
            taken.append(self._waiting.popleft())
            inputs += len(asked.inputs)
        return taken

    async def _call(self, taken: list[_Asked], account: str) -> None:
        try:
            await self._ask(taken, account)
        except BaseException:  # nobody may wait for what is no longer done
            for asked in taken:
                _fail(asked.vectors, Overloaded("The call was given up. Please try again."))
            raise

    async def _ask(self, taken: list[_Asked], account: str) -> None:
        try:
            joined = [ids for asked in taken for ids in asked.inputs]
            vectors = await self._backend.embed(joined, account) if joined else None
        except Exception as error:  # handed to those who asked
            if len(taken) > 1 and not isinstance(error, Overloaded):
                for asked in taken:  # one of them is at fault, and only that one fails
                    await self._ask([asked], account)
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
