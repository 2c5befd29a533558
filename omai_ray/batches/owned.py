"""What accounts see of their batches and jobs: theirs alone, the newest first."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import ColumnElement, RowMapping, Table, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.batches.leases import UNFINISHED, Work
from omai_ray.errors import InvalidRequest, NotFound
from omai_ray.files import Files
from omai_ray.identity.checks import shown
from omai_ray.identity.paging import Page
from omai_ray.store import BatchStatus, Purpose, Store

MAX_PAGE = 100


class Lasting(Work, Protocol):
    """Work that has a status."""

    @property
    def status(self) -> BatchStatus:
        """How far it is."""


Seen = TypeVar("Seen", bound=Lasting)


class Owned(Generic[Seen]):
    """Rows of a table that accounts make, read, list and cancel.

    prefix: of their ids. noun: what errors call one. Methods raise NotFound for a row that is not
    there, or is another account's, and Overloaded where the database is away. clock: seconds since
    the epoch.
    """

    def __init__(
        self,
        store: Store,
        table: Table,
        of_row: Callable[[RowMapping], Seen],
        prefix: str,
        noun: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._table = table
        self._of_row = of_row
        self._prefix = prefix
        self._noun = noun
        self._clock = clock
        self._id = re.compile(rf"{prefix}_[0-9a-f]{{31}}", re.ASCII)

    async def get(self, account_id: str, name: str) -> Seen:
        """Return an account's."""
        if self._id.fullmatch(name):
            statement = select(self._table).where(*self._own(account_id, name))
            async with self._store.reading() as connection:
                row = (await connection.execute(statement)).mappings().first()
            if row is not None:
                return self._of_row(row)
        raise NotFound(f"No {self._noun} found with id '{shown(name)}'.")

    async def list(
        self, account_id: str, *, after: str | None = None, limit: int = 20
    ) -> Page[Seen]:
        """Return an account's, newest first. after: the id of the last one seen."""
        if after is not None and not self._id.fullmatch(after):
            raise InvalidRequest(f"Invalid 'after': expected a {self._noun}'s id.", param="after")
        of = self._table.c
        statement = select(self._table).where(of.account_id == account_id)
        if after is not None:
            statement = statement.where(of.id < after)
        async with self._store.reading() as connection:
            rows = await connection.execute(statement.order_by(of.id.desc()).limit(limit + 1))
            return Page.of([self._of_row(row) for row in rows.mappings()], limit)

    async def cancel(self, account_id: str, name: str) -> Seen:
        """Ask for its end: what is done by then is kept. Asking again changes nothing.

        Raises InvalidRequest where it has ended, or is about to.
        """
        if self._id.fullmatch(name):
            running = self._table.c.status.in_(("validating", "in_progress"))
            statement = (
                update(self._table)
                .where(*self._own(account_id, name), running)
                .values(status="cancelling", cancelling_at=self._clock())
                .returning(self._table)
            )
            async with self._store.writing() as connection:
                row = (await connection.execute(statement)).mappings().first()
            if row is not None:
                return self._of_row(row)
        found = await self.get(account_id, name)
        if found.status == "cancelling":
            return found
        code = f"{self._noun.replace(' ', '_')}_not_cancellable"
        raise InvalidRequest(
            f"Cannot cancel a {self._noun} with status '{found.status}'.", code=code
        )

    def _new(
        self, account_id: str, key_id: str | None, metadata: Mapping[str, str] | None
    ) -> dict[str, Any]:
        """Return what every new row has; its id sorts by when it was made."""
        now_s = self._clock()
        return {
            "id": f"{self._prefix}_{round(now_s * 1000):011x}{secrets.token_hex(10)}",
            "account_id": account_id,
            "key_id": key_id,
            "metadata": dict(metadata) if metadata else None,
            "status": "validating",
            "created": now_s,
        }

    async def _insert(
        self, connection: AsyncConnection, values: Mapping[str, object], most: int, nouns: str
    ) -> Seen:
        """Return a new one. Raises InvalidRequest where so many of its account's have not ended."""
        of = self._table.c
        unfinished = select(func.count()).where(
            of.account_id == values["account_id"], of.status.in_(UNFINISHED)
        )
        if (await connection.scalar(unfinished) or 0) >= most:
            raise InvalidRequest(
                f"You have {most} {nouns} that have not ended, the most that an account may have. "
                "Please wait for one to end, or cancel it.",
                code=f"too_many_{nouns.replace(' ', '_')}",
            )
        made = insert(self._table).values(**values).returning(self._table)
        return self._of_row((await connection.execute(made)).mappings().one())

    def _own(self, account_id: str, name: str) -> tuple[ColumnElement[bool], ...]:
        return (self._table.c.id == name, self._table.c.account_id == account_id)


async def hold_input(
    files: Files,
    connection: AsyncConnection,
    account_id: str,
    file: str,
    *,
    field: str,
    purpose: Purpose,
    user: str,
) -> None:
    """Keep an account's file for a batch or job. Raises InvalidRequest for another purpose.

    field: of the request, that names the file. user: what errors call what takes it.
    """
    held = await files.hold(connection, account_id, file, field)
    if held.purpose != purpose:
        raise InvalidRequest(
            f"Invalid '{field}': the file's purpose is '{held.purpose}'; {user} "
            f"takes one that was uploaded with purpose '{purpose}'.",
            param=field,
        )
