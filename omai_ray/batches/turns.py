"""Whose batch is answered next, where only so many are at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Gives out so many turns; a free one goes to the account that has the fewest.

    Of those that have as few, to whoever waits longest: an account's hundreds of batches do not
    hold up another's only one.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._running: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, account: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it within."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (account, mine)
        self._waiting.append(entry)
        self._give()
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():
                self._end(account)
            elif entry in self._waiting:
                self._waiting.remove(entry)
            raise
        try:
            yield
        finally:
            self._end(account)

    def _end(self, account: str) -> None:
        self._free += 1
        self._running[account] -= 1
        self._give()

    def _give(self) -> None:
        while self._free and self._waiting:
            entry = min(self._waiting, key=lambda waiting: self._running[waiting[0]])
            self._waiting.remove(entry)
            account, future = entry
            if future.done():  # cancelled, and its task has yet to hear of it
                continue
            self._free -= 1
            self._running[account] += 1
            future.set_result(None)
