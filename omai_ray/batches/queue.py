"""The batches that are to be done: who drives which, and how far each is.

Every change is one transaction that says what must still hold for it, so that a driver or worker
that was taken for dead, and goes on, changes nothing that its successor relies on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.batches.batches import UNFINISHED
from omai_ray.batches.check import CheckedInput, Problem
from omai_ray.files import Files
from omai_ray.store import Batch, BatchOutcome, BatchStatus, BatchUnit, File, Store
from omai_ray.store.tables import accounts, batch_units, batches

CLAIMED_AT_ONCE = 100
_IN_A_STATEMENT = 1000
_ANSWERING = ("in_progress", "cancelling")


class LeaseLost(Exception):
    """Another driver has the batch by now."""


class _Refused(Exception):
    """What a transaction relied on no longer holds: it is rolled back."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of a unit's lines, and what those that were answered used."""

    completed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Overview:
    """Batches that have not ended, by status, and their enqueued tokens; requests ever done."""

    unfinished: dict[BatchStatus, int]
    enqueued_tokens: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """A closed batch's files, whose content is durable; None for one that would be empty.

    completed: lines of the output file. problems: what neither of them tells.
    """

    output: File | None
    error: File | None
    completed: int
    problems: tuple[Problem, ...] = ()


class BatchQueue:
    """What drivers and workers do with batches; raises Overloaded where the database is away.

    clock: seconds since the epoch.
    """

    def __init__(self, store: Store, files: Files, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._files = files
        self._clock = clock

    async def claim(self, holder: str, lease_s: float) -> list[Batch]:
        """Return batches that nobody drives, the oldest first; they are the holder's from here."""
        now_s = self._clock()
        free = and_(
            batches.c.status.in_(UNFINISHED),
            or_(batches.c.holder.is_(None), batches.c.held_until < now_s),
        )
        some = select(batches.c.id).where(free).order_by(batches.c.created).limit(CLAIMED_AT_ONCE)
        async with self._store.reading() as connection:
            if not (await connection.execute(some.limit(1))).first():
                return []
        taken = (
            update(batches)
            .where(batches.c.id.in_(some), free)
            .values(holder=holder, held_until=now_s + lease_s)
            .returning(batches)
        )
        async with self._store.writing() as connection:
            rows = (await connection.execute(taken)).mappings().all()
        return sorted((Batch.from_row(row) for row in rows), key=lambda batch: batch.created)

    async def renew(self, holder: str, driven: Iterable[str], lease_s: float) -> set[str]:
        """Keep those batches that the holder drives, and has, for longer; return their ids.

        What it has without knowing, as a claim may be committed and fail, is free again by and by.
        """
        kept: set[str] = set()
        mine = and_(batches.c.holder == holder, batches.c.status.in_(UNFINISHED))
        until = {"held_until": self._clock() + lease_s}
        async with self._store.writing() as connection:
            for some in _divided(driven):
                renewed = update(batches).where(batches.c.id.in_(some), mine).values(until)
                rows = await connection.execute(renewed.returning(batches.c.id))
                kept.update(rows.scalars())
        return kept

    async def read(self, batch: str) -> Batch:
        """Return a batch as it is now."""
        async with self._store.reading() as connection:
            found = await connection.execute(select(batches).where(batches.c.id == batch))
            return Batch.from_row(found.mappings().one())

    async def over(self, asked: Iterable[str]) -> set[str]:
        """Return those of some batches of which nothing more should be answered."""
        is_over = or_(
            batches.c.outcome.is_not(None),
            batches.c.status == "cancelling",
            batches.c.expires <= self._clock(),
        )
        found: set[str] = set()
        async with self._store.reading() as connection:
            for some in _divided(asked):
                statement = select(batches.c.id).where(batches.c.id.in_(some), is_over)
                found.update((await connection.execute(statement)).scalars())
        return found

    async def units(self, batch: str) -> list[BatchUnit]:
        """Return a batch's units in the input's order."""
        statement = (
            select(batch_units)
            .where(batch_units.c.batch_id == batch)
            .order_by(batch_units.c.number)
        )
        async with self._store.reading() as connection:
            rows = (await connection.execute(statement)).mappings()
            return [BatchUnit.from_row(row) for row in rows]

    async def begin(
        self, batch: Batch, holder: str, checked: CheckedInput, limit: int | None
    ) -> Problem | None:
        """Go from validating to in_progress, unless it was cancelled meanwhile.

        limit: how many tokens the account may have enqueued. Returns what stands in the way.
        """
        others = select(func.sum(batches.c.enqueued_tokens)).where(
            batches.c.account_id == batch.account_id,
            batches.c.status.in_(UNFINISHED),
            batches.c.id != batch.id,
        )
        rows = [
            {"batch_id": batch.id, "number": number, **asdict(stretch)}
            for number, stretch in enumerate(checked.stretches)
        ]
        async with self._store.writing() as connection:
            await self._require_lease(connection, batch, holder)
            await _lock_account(connection, batch.account_id)  # two must not both fit
            enqueued = await connection.scalar(others) or 0
            if limit is not None and enqueued + checked.tokens > limit:
                return _too_many_tokens(limit, int(enqueued), checked.tokens)
            begun = (
                update(batches)
                .where(batches.c.id == batch.id, batches.c.status == "validating")
                .values(
                    status="in_progress",
                    in_progress_at=self._clock(),
                    model=checked.model,
                    total=checked.requests,
                    enqueued_tokens=checked.tokens,
                )
            )
            if (await connection.execute(begun)).rowcount:
                await connection.execute(insert(batch_units), rows)
        return None

    async def fail(self, batch: Batch, holder: str, problems: Iterable[Problem]) -> None:
        """End a batch whose input cannot be run, unless it was cancelled meanwhile."""
        ended = (
            update(batches)
            .where(batches.c.id == batch.id, batches.c.status == "validating")
            .values(
                status="failed",
                failed_at=self._clock(),
                errors=[asdict(problem) for problem in problems],
                holder=None,
            )
        )
        async with self._store.writing() as connection:
            await self._require_lease(connection, batch, holder)
            if (await connection.execute(ended)).rowcount:
                await self._files.release(connection, batch.input_file_id)

    async def commit(self, unit: BatchUnit, part: str, output_bytes: int, tally: Tally) -> bool:
        """Make a part the unit's answers; False where it has others, or the batch takes none.

        May be repeated where it is unknown what became of it.
        """
        done = (
            update(batch_units)
            .where(
                batch_units.c.batch_id == unit.batch_id,
                batch_units.c.number == unit.number,
                batch_units.c.part.is_(None),
            )
            .values(part=part, output_bytes=output_bytes)
        )
        counted = (
            update(batches)
            .where(
                batches.c.id == unit.batch_id,
                batches.c.outcome.is_(None),
                batches.c.status.in_(_ANSWERING),
            )
            .values({name: batches.c[name] + count for name, count in asdict(tally).items()})
        )
        there = select(batch_units.c.part).where(
            batch_units.c.batch_id == unit.batch_id, batch_units.c.number == unit.number
        )
        try:
            async with self._store.writing() as connection:
                if not (await connection.execute(done)).rowcount:
                    return bool(await connection.scalar(there) == part)
                if not (await connection.execute(counted)).rowcount:
                    raise _Refused
        except _Refused:
            return False
        return True

    async def close(self, batch: Batch, holder: str, outcome: BatchOutcome) -> Batch:
        """Take no more answers.

        outcome: how it ends, unless it was cancelled meanwhile. Closing again changes nothing.
        """
        async with self._store.writing() as connection:
            now = await self._require_lease(connection, batch, holder)
            if now.outcome is not None:
                return now
            cancelled = now.status == "cancelling"
            closed = (
                update(batches)
                .where(batches.c.id == batch.id)
                .values(
                    outcome="cancelled" if cancelled else outcome,
                    status="cancelling" if cancelled else "finalizing",
                    finalizing_at=None if cancelled else self._clock(),
                )
                .returning(batches)
            )
            return Batch.from_row((await connection.execute(closed)).mappings().one())

    async def finish(
        self,
        batch: Batch,
        holder: str,
        outcome: BatchOutcome,
        assembled: Assembled,
    ) -> None:
        """End a closed batch, and make files of what was assembled, of which nobody knows yet.

        Requests that have no answer count as failed.
        """
        output, error = assembled.output, assembled.error
        problems = [asdict(problem) for problem in assembled.problems]
        ended = (
            update(batches)
            .where(batches.c.id == batch.id)
            .values(
                {
                    "status": outcome,
                    f"{outcome}_at": self._clock(),
                    "output_file_id": output and output.id,
                    "error_file_id": error and error.id,
                    "completed": assembled.completed,
                    "failed": batches.c.total - assembled.completed,
                    "errors": problems or None,
                    "holder": None,
                }
            )
        )
        async with self._store.writing() as connection:
            await self._require_lease(connection, batch, holder)
            for file in (output, error):
                if file is not None:
                    await self._files.add(connection, file)
            await connection.execute(ended)
            await self._files.release(connection, batch.input_file_id)

    async def overview(self) -> Overview:
        """Return what there is to do, and what was done, of all accounts."""
        unfinished = (
            select(batches.c.status, func.count(), func.sum(batches.c.enqueued_tokens))
            .where(batches.c.status.in_(UNFINISHED))
            .group_by(batches.c.status)
        )
        done = select(func.sum(batches.c.completed), func.sum(batches.c.failed))
        async with self._store.reading() as connection:
            rows = (await connection.execute(unfinished)).all()
            completed, failed = (await connection.execute(done)).one()
        return Overview(
            {status: count for status, count, _ in rows},
            sum(int(tokens) for _, _, tokens in rows),
            int(completed or 0),
            int(failed or 0),
        )

    async def with_leftovers(self) -> list[str]:
        """Return batches that have ended and whose units are still here."""
        statement = (
            select(batch_units.c.batch_id)
            .join_from(batch_units, batches)
            .where(batches.c.status.not_in(UNFINISHED))
            .distinct()
            .limit(CLAIMED_AT_ONCE)
        )
        async with self._store.reading() as connection:
            return list((await connection.execute(statement)).scalars())

    async def parts_in_use(self, parts: Iterable[str]) -> set[str]:
        """Return which of some names are a unit's part."""
        wanted = list(parts)
        # By the batches, which a part's name begins with: units have no index of their parts.
        owners = {part.partition("-")[0] for part in wanted}
        statement = select(batch_units.c.part).where(
            batch_units.c.batch_id.in_(owners), batch_units.c.part.in_(wanted)
        )
        async with self._store.reading() as connection:
            return set((await connection.execute(statement)).scalars())

    async def forget_units(self, batch: str) -> None:
        """Remove the units of a batch that has ended and whose parts are gone."""
        async with self._store.writing() as connection:
            await connection.execute(delete(batch_units).where(batch_units.c.batch_id == batch))

    async def _require_lease(self, connection: AsyncConnection, batch: Batch, holder: str) -> Batch:
        """Return a batch, kept from others' changes until the transaction ends.

        Raises LeaseLost where another driver has it.
        """
        mine: ColumnElement[bool] = and_(batches.c.id == batch.id, batches.c.holder == holder)
        found = await connection.execute(select(batches).where(mine).with_for_update())
        row = found.mappings().first()
        if row is None:
            raise LeaseLost
        return Batch.from_row(row)


def _divided(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield some ids as lists that a statement can have: it takes a bounded number of values."""
    every = sorted(ids)
    for start in range(0, len(every), _IN_A_STATEMENT):
        yield every[start : start + _IN_A_STATEMENT]


async def _lock_account(connection: AsyncConnection, account_id: str) -> None:
    statement = select(accounts.c.id).where(accounts.c.id == account_id).with_for_update()
    await connection.execute(statement)


def _too_many_tokens(limit: int, enqueued: int, tokens: int) -> Problem:
    return Problem(
        "token_limit_exceeded",
        f"Enqueued token limit reached: Limit {limit} tokens, Enqueued {enqueued}, Requested "
        f"{tokens}. Please try again once batches of yours have ended.",
    )
