"""Which driver does which batch or job: each is one driver's, for as long as that renews it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from sqlalchemy import ColumnElement, RowMapping, Table, and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.files import Files
from omai_ray.store import BatchStatus, File, Store
from omai_ray.store.tables import accounts, batches, embedding_jobs

UNFINISHED: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")
CLAIMED_AT_ONCE = 100
_IN_A_STATEMENT = 1000


class Work(Protocol):
    """What a driver takes to its end: a row of a table with status, holder and held_until."""

    @property
    def id(self) -> str:
        """Its primary key."""

    @property
    def created(self) -> float:
        """Seconds since the epoch."""


Taken = TypeVar("Taken", bound=Work)


class LeaseLost(Exception):
    """Another driver has the work by now."""


class Leases(Generic[Taken]):
    """Who drives what of a table; raises Overloaded where the database is away.

    of_row: makes what drivers are given. clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        table: Table,
        of_row: Callable[[RowMapping], Taken],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._table = table
        self._of_row = of_row
        self._clock = clock

    async def claim(self, holder: str, lease_s: float) -> list[Taken]:
        """Return what nobody drives, the oldest first; it is the holder's from here."""
        now_s, of = self._clock(), self._table.c
        free = and_(
            of.status.in_(UNFINISHED),
            or_(of.holder.is_(None), of.held_until < now_s),
        )
        some = select(of.id).where(free).order_by(of.created).limit(CLAIMED_AT_ONCE)
        async with self._store.reading() as connection:
            if not (await connection.execute(some.limit(1))).first():
                return []
        taken = (
            update(self._table)
            .where(of.id.in_(some), free)
            .values(holder=holder, held_until=now_s + lease_s)
            .returning(self._table)
        )
        async with self._store.writing() as connection:
            rows = (await connection.execute(taken)).mappings().all()
        return sorted((self._of_row(row) for row in rows), key=lambda work: work.created)

    async def renew(self, holder: str, driven: Iterable[str], lease_s: float) -> set[str]:
        """Keep what of it the holder drives, and has, for longer; return their ids.

        What it has without knowing, as a claim may be committed and fail, is free again by and by.
        """
        kept: set[str] = set()
        of = self._table.c
        mine = and_(of.holder == holder, of.status.in_(UNFINISHED))
        until = {"held_until": self._clock() + lease_s}
        async with self._store.writing() as connection:
            for some in divided(driven):
                renewed = update(self._table).where(of.id.in_(some), mine).values(until)
                rows = await connection.execute(renewed.returning(of.id))
                kept.update(rows.scalars())
        return kept

    async def read(self, work: str) -> Taken:
        """Return it as it is now."""
        statement = select(self._table).where(self._table.c.id == work)
        async with self._store.reading() as connection:
            found = await connection.execute(statement)
            return self._of_row(found.mappings().one())

    async def _require_lease(self, connection: AsyncConnection, work: Work, holder: str) -> Taken:
        """Return it as it is now, kept from others' changes until the transaction ends.

        Raises LeaseLost where another driver has it.
        """
        of = self._table.c
        mine: ColumnElement[bool] = and_(of.id == work.id, of.holder == holder)
        found = await connection.execute(select(self._table).where(mine).with_for_update())
        row = found.mappings().first()
        if row is None:
            raise LeaseLost
        return self._of_row(row)

    async def _end(
        self,
        work: Taken,
        holder: str,
        outcome: BatchStatus,
        values: Mapping[str, object],
        files: Files,
        made: Sequence[File | None],
        input_file: str | None,
    ) -> None:
        """End it, make its files, and let go of its input. Raises LeaseLost.

        values: what else it is from now on. made: an output and a file of errors, in this order.
        """
        output, error = made
        now: dict[str, object] = {
            "status": outcome,
            f"{outcome}_at": self._clock(),
            "output_file_id": output and output.id,
            "error_file_id": error and error.id,
            "holder": None,
        }
        ended = update(self._table).where(self._table.c.id == work.id).values(now | dict(values))
        async with self._store.writing() as connection:
            await self._require_lease(connection, work, holder)
            for file in filter(None, made):
                await files.add(connection, file)
            await connection.execute(ended)
            if input_file is not None:
                await files.release(connection, input_file)


def divided(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield some ids as lists that a statement can have: it takes a bounded number of values."""
    every = sorted(ids)
    for start in range(0, len(every), _IN_A_STATEMENT):
        yield every[start : start + _IN_A_STATEMENT]


async def enqueued_beside(connection: AsyncConnection, account_id: str, work: str) -> int:
    """Return how many tokens an account has enqueued in batches and jobs, one of them left out.

    The account is locked until the transaction ends: two must not both fit.
    """
    owner = select(accounts.c.id).where(accounts.c.id == account_id).with_for_update()
    await connection.execute(owner)
    total = 0
    for table in (batches, embedding_jobs):
        others = select(func.sum(table.c.enqueued_tokens)).where(
            table.c.account_id == account_id,
            table.c.status.in_(UNFINISHED),
            table.c.id != work,
        )
        total += int(await connection.scalar(others) or 0)
    return total
