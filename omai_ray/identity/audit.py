"""The audit log: who did what to whom, kept in the transaction that does it.

The database refuses to change or remove an entry. An entry never has a secret, nor a name that was
typed at a login and belongs to nobody: it may be a password.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import InvalidRequest, OMAiError
from omai_ray.identity.actor import Actor
from omai_ray.identity.paging import MAX_PAGE, Page
from omai_ray.store import AuditEntry, Outcome, Store, is_storable
from omai_ray.store.tables import audit
from omai_ray.telemetry.logs import request_id_var

MAX_WAITING = 1000
MAX_NOTED = 10_000
REPEAT_S = 60.0
_SAME = ("actor", "action", "target", "outcome", "source")
_log = logging.getLogger(__name__)


class AuditLog:
    """Writes and reads entries. clock: seconds since the epoch."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._waiting: list[dict[str, Any]] = []
        self._noted: dict[tuple[Any, ...], float] = {}
        self._writer: asyncio.Task[None] | None = None

    def entry(
        self,
        actor: Actor,
        action: str,
        target: str | None,
        account_id: str | None,
        *,
        outcome: Outcome = "success",
        details: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return an entry as the table takes it."""
        return {
            "at": self._clock(),
            "actor": actor.id[:64],
            "actor_name": actor.name,
            "action": action,
            "target": target,
            "account_id": account_id,
            "outcome": outcome,
            "request_id": request_id_var.get(),
            "source": actor.source[:64] if actor.source else None,
            "details": details or None,
        }

    async def write(self, connection: AsyncConnection, entry: dict[str, Any]) -> None:
        """Add an entry to a transaction: what is done and its entry are kept together, or not."""
        await connection.execute(insert(audit).values(**entry))

    def note(self, entry: dict[str, Any]) -> None:
        """Write an entry behind the request, for what changes nothing: refusals and failures.

        The same by the same actor from the same source is written once a minute: an entry stays
        for ever. Where the database is away, or too many wait, it goes to the process's log.
        """
        if self._is_repeated(entry):
            return
        if len(self._waiting) >= MAX_WAITING:
            _log.error("not in the audit log: %s", entry)
            return
        self._waiting.append(entry)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())

    async def close(self) -> None:
        """Wait until what was noted is written."""
        if self._writer is not None:
            await self._writer

    async def list(
        self,
        *,
        account_id: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        after: str | None = None,
        limit: int = MAX_PAGE,
    ) -> Page[AuditEntry]:
        """Return entries, newest first. after: the id of the last one seen."""
        statement = select(audit).order_by(audit.c.id.desc()).limit(limit + 1)
        wanted = {"account_id": account_id, "actor": actor, "action": action, "target": target}
        for name, value in wanted.items():
            if value is not None:
                if not is_storable(value):
                    return Page.of([], limit)
                statement = statement.where(audit.c[name] == value)
        if after is not None:
            if not after.isascii() or not after.isdigit() or len(after) > 18:
                raise InvalidRequest("Invalid 'after': expected an entry's id.", param="after")
            statement = statement.where(audit.c.id < int(after))
        async with self._store.reading() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return Page.of([AuditEntry.from_row(row) for row in rows], limit)

    def _is_repeated(self, entry: dict[str, Any]) -> bool:
        what = tuple(entry[name] for name in _SAME)
        if entry["at"] - self._noted.get(what, float("-inf")) < REPEAT_S:
            return True
        self._noted.pop(what, None)
        self._noted[what] = entry["at"]
        if len(self._noted) > MAX_NOTED:
            del self._noted[next(iter(self._noted))]
        return False

    async def _write_waiting(self) -> None:
        while self._waiting:
            entries, self._waiting = self._waiting, []
            if not await self._written(entries):
                for entry in entries:  # one that cannot be must not keep the others out
                    if not await self._written([entry]):
                        _log.error("not in the audit log: %s", entry)

    async def _written(self, entries: Sequence[dict[str, Any]]) -> bool:
        try:
            async with self._store.writing() as connection:
                await connection.execute(insert(audit), entries)
        except (OMAiError, IntegrityError):
            return False
        return True
