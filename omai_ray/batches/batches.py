"""Batches as their accounts see them: created, listed, cancelled."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping

from sqlalchemy import ColumnElement, func, insert, select, update

from omai_ray.batches.lines import Endpoint
from omai_ray.errors import InvalidRequest, NotFound
from omai_ray.files import Files
from omai_ray.identity.paging import Page
from omai_ray.store import Batch, BatchStatus, Store
from omai_ray.store.tables import batches

WINDOW = "24h"
WINDOW_S = 86_400.0
MAX_PAGE = 100
MAX_UNFINISHED = 1000
UNFINISHED: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")
_ID = re.compile(r"batch_[0-9a-f]{31}", re.ASCII)


class Batches:
    """What accounts do with batches.

    Every method raises NotFound for a batch that is not there, or is another account's, and
    Overloaded where the database is away. clock: seconds since the epoch.
    """

    def __init__(self, store: Store, files: Files, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._files = files
        self._clock = clock

    async def create(
        self,
        account_id: str,
        key_id: str | None,
        *,
        input_file_id: str,
        endpoint: Endpoint,
        metadata: Mapping[str, str] | None = None,
        output_expires_s: int | None = None,
    ) -> Batch:
        """Return a new batch over a file of the account's, which is kept until the batch ends.

        Raises InvalidRequest for a file of another purpose, or where too many batches are at work.
        """
        now_s = self._clock()
        values = {
            "id": f"batch_{round(now_s * 1000):011x}{secrets.token_hex(10)}",
            "account_id": account_id,
            "key_id": key_id,
            "endpoint": endpoint,
            "completion_window": WINDOW,
            "input_file_id": input_file_id,
            "metadata": dict(metadata) if metadata else None,
            "output_expires_s": output_expires_s,
            "status": "validating",
            "created": now_s,
            "expires": now_s + WINDOW_S,
        }
        unfinished = select(func.count()).where(
            batches.c.account_id == account_id, batches.c.status.in_(UNFINISHED)
        )
        async with self._store.writing() as connection:
            file = await self._files.hold(connection, account_id, input_file_id)
            if file.purpose != "batch":
                raise InvalidRequest(
                    f"Invalid 'input_file_id': the file's purpose is '{file.purpose}'; a batch "
                    "takes one that was uploaded with purpose 'batch'.",
                    param="input_file_id",
                )
            if (await connection.scalar(unfinished) or 0) >= MAX_UNFINISHED:
                raise InvalidRequest(
                    f"You have {MAX_UNFINISHED} batches that have not ended, the most that an "
                    "account may have. Please wait for one to end, or cancel it.",
                    code="too_many_batches",
                )
            made = insert(batches).values(**values).returning(batches)
            return Batch.from_row((await connection.execute(made)).mappings().one())

    async def get(self, account_id: str, batch: str) -> Batch:
        """Return an account's batch."""
        if _ID.fullmatch(batch):
            async with self._store.reading() as connection:
                found = await connection.execute(select(batches).where(*_own(account_id, batch)))
                row = found.mappings().first()
            if row is not None:
                return Batch.from_row(row)
        raise _not_found(batch)

    async def list(
        self, account_id: str, *, after: str | None = None, limit: int = 20
    ) -> Page[Batch]:
        """Return an account's batches, newest first. after: the id of the last one seen."""
        if after is not None and not _ID.fullmatch(after):
            raise InvalidRequest("Invalid 'after': expected a batch's id.", param="after")
        statement = select(batches).where(batches.c.account_id == account_id)
        if after is not None:
            statement = statement.where(batches.c.id < after)
        async with self._store.reading() as connection:
            rows = await connection.execute(
                statement.order_by(batches.c.id.desc()).limit(limit + 1)
            )
            return Page.of([Batch.from_row(row) for row in rows.mappings()], limit)

    async def cancel(self, account_id: str, batch: str) -> Batch:
        """Ask for a batch's end: what is answered by then is kept. Asking again changes nothing.

        Raises InvalidRequest where it has ended, or is about to.
        """
        if _ID.fullmatch(batch):
            running = batches.c.status.in_(("validating", "in_progress"))
            statement = (
                update(batches)
                .where(*_own(account_id, batch), running)
                .values(status="cancelling", cancelling_at=self._clock())
                .returning(batches)
            )
            async with self._store.writing() as connection:
                row = (await connection.execute(statement)).mappings().first()
            if row is not None:
                return Batch.from_row(row)
        found = await self.get(account_id, batch)
        if found.status == "cancelling":
            return found
        raise InvalidRequest(
            f"Cannot cancel a batch with status '{found.status}'.", code="batch_not_cancellable"
        )


def _own(account_id: str, batch: str) -> tuple[ColumnElement[bool], ...]:
    return (batches.c.id == batch, batches.c.account_id == account_id)


def _not_found(batch: str) -> NotFound:
    shown = batch if len(batch) <= 80 and batch.isprintable() else "..."
    return NotFound(f"No batch found with id '{shown}'.")
