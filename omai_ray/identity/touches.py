"""Noting when keys and sessions were last used, behind the requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, bindparam, or_, update

from omai_ray.errors import OMAiError
from omai_ray.store import Store

EVERY_S = 60.0
_MAX_NOTED = 10_000
_log = logging.getLogger(__name__)


class Touches:
    """Writes a time of last use at most once a minute for each row, many in one transaction.

    identity, seen: the columns of the row's id and of the time. clock: seconds since the epoch.
    A write that fails is dropped: the next use tries again a minute later.
    """

    def __init__(
        self, store: Store, identity: Column[str], seen: Column[Any], clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._clock = clock
        self._noted: dict[str, float] = {}
        self._pending: dict[str, float] = {}
        self._writer: asyncio.Task[None] | None = None
        self._statement = (
            update(identity.table)
            .where(identity == bindparam("row_id"))
            .where(or_(seen.is_(None), seen < bindparam("now")))
            .values({seen: bindparam("now")})
        )

    def touch(self, row_id: str, last_s: float | None) -> None:
        """Note a use now, of a row last used at `last_s`. Returns at once."""
        now_s = self._clock()
        if now_s - max(last_s or 0.0, self._noted.get(row_id, 0.0)) < EVERY_S:
            return
        self._noted.pop(row_id, None)
        self._noted[row_id] = now_s
        if len(self._noted) > _MAX_NOTED:
            del self._noted[next(iter(self._noted))]  # the longest ago
        self._pending[row_id] = now_s
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Wait until what was noted is written."""
        if self._writer is not None:
            await self._writer

    async def _write(self) -> None:
        while self._pending:
            # In one order everywhere: replicas would otherwise wait for each other's rows.
            rows = [{"row_id": key, "now": at} for key, at in sorted(self._pending.items())]
            self._pending = {}
            try:
                async with self._store.writing() as connection:
                    await connection.execute(self._statement, rows)
            except OMAiError as error:
                _log.warning("times of last use were not written: %s", error.message)
