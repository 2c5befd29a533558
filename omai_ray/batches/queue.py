"""The batches that are to be done: who drives which, and how far each is.

Every change is one transaction that says what must still hold for it, so that a driver or worker
that was taken for dead, and goes on, changes nothing that its successor relies on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import delete, func, insert, or_, select, update

from omai_ray.batches.check import CheckedInput, Problem
from omai_ray.batches.leases import CLAIMED_AT_ONCE, UNFINISHED, Leases, divided, enqueued_beside
from omai_ray.files import Files
from omai_ray.store import Batch, BatchOutcome, BatchStatus, BatchUnit, File, Store
from omai_ray.store.tables import batch_units, batches

_ANSWERING = ("in_progress", "cancelling")


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


class BatchQueue(Leases[Batch]):
    """What drivers and workers do with batches; raises Overloaded where the database is away.

    clock: seconds since the epoch.
    """

    def __init__(self, store: Store, files: Files, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store, batches, Batch.from_row, clock)
        self._files = files

    async def over(self, asked: Iterable[str]) -> set[str]:
        """Return those of some batches of which nothing more should be answered."""
        is_over = or_(
            batches.c.outcome.is_not(None),
            batches.c.status == "cancelling",
            batches.c.expires <= self._clock(),
        )
        found: set[str] = set()
        async with self._store.reading() as connection:
            for some in divided(asked):
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
        rows = [
            {"batch_id": batch.id, "number": number, **asdict(stretch)}
            for number, stretch in enumerate(checked.stretches)
        ]
        async with self._store.writing() as connection:
            await self._require_lease(connection, batch, holder)
            enqueued = await enqueued_beside(connection, batch.account_id, batch.id)
            if limit is not None and enqueued + checked.tokens > limit:
                return too_many_tokens(limit, enqueued, checked.tokens)
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
        problems = [asdict(problem) for problem in assembled.problems]
        values = {
            "completed": assembled.completed,
            "failed": batches.c.total - assembled.completed,
            "errors": problems or None,
        }
        made = assembled.output, assembled.error
        await self._end(batch, holder, outcome, values, self._files, made, batch.input_file_id)

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


def too_many_tokens(limit: int, enqueued: int, tokens: int) -> Problem:
    """Return what a batch or job fails by that does not fit into what an account may enqueue."""
    return Problem(
        "token_limit_exceeded",
        f"Enqueued token limit reached: Limit {limit} tokens, Enqueued {enqueued}, Requested "
        f"{tokens}. Please try again once batches or jobs of yours have ended.",
    )
