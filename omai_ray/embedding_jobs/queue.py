"""The embedding jobs that are to be done: who drives which, and how far each is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from sqlalchemy import func, select, update

from omai_ray.batches.leases import UNFINISHED, Leases, divided, enqueued_beside
from omai_ray.batches.queue import too_many_tokens
from omai_ray.files import Files
from omai_ray.store import BatchStatus, EmbeddingJob, File, Store
from omai_ray.store.tables import embedding_jobs


@dataclass(frozen=True, slots=True)
class Done:
    """Rows that were embedded, rows that could not be, and the tokens of the former."""

    completed: int = 0
    failed: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class JobError:
    """What a job fails by, as its owner reads it."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Overview:
    """Jobs that have not ended, by status; rows ever done."""

    unfinished: dict[BatchStatus, int]
    completed: int
    failed: int


class JobQueue(Leases[EmbeddingJob]):
    """What drivers do with jobs; raises Overloaded where the database is away.

    Every change is one transaction that holds only for the job's driver: others raise LeaseLost.
    clock: seconds since the epoch.
    """

    def __init__(self, store: Store, files: Files, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store, embedding_jobs, EmbeddingJob.from_row, clock)
        self._files = files

    async def begin(
        self, job: EmbeddingJob, holder: str, rows: int, tokens: int, limit: int | None
    ) -> JobError | None:
        """Go from validating to in_progress, unless it was cancelled meanwhile.

        tokens: an estimate. limit: how many the account may have enqueued. Returns what stands in
        the way.
        """
        begun = (
            update(embedding_jobs)
            .where(embedding_jobs.c.id == job.id, embedding_jobs.c.status == "validating")
            .values(
                status="in_progress",
                in_progress_at=self._clock(),
                total=rows,
                enqueued_tokens=tokens,
            )
        )
        async with self._store.writing() as connection:
            await self._require_lease(connection, job, holder)
            enqueued = await enqueued_beside(connection, job.account_id, job.id)
            if limit is not None and enqueued + tokens > limit:
                problem = too_many_tokens(limit, enqueued, tokens)
                return JobError(problem.code, problem.message)
            await connection.execute(begun)
        return None

    async def progress(self, job: EmbeddingJob, holder: str, done: Done | None) -> EmbeddingJob:
        """Note how far a job is, where that is known and new; return it as it is now."""
        now = await self.read(job.id)
        if done is None or done == Done(now.completed, now.failed, now.tokens):
            return now
        async with self._store.writing() as connection:
            await self._require_lease(connection, job, holder)
            noted = (
                update(embedding_jobs)
                .where(embedding_jobs.c.id == job.id)
                .values(completed=done.completed, failed=done.failed, tokens=done.tokens)
                .returning(embedding_jobs)
            )
            return EmbeddingJob.from_row((await connection.execute(noted)).mappings().one())

    async def close(
        self, job: EmbeddingJob, holder: str, problem: JobError | None, done: Done | None = None
    ) -> None:
        """Do no more of a job, unless it was cancelled meanwhile.

        problem: what it fails by. done: how far it is, where that is known.
        """
        error = None if problem is None else asdict(problem)
        known = {} if done is None else asdict(done)
        running = embedding_jobs.c.status.in_(("validating", "in_progress"))
        closed = (
            update(embedding_jobs)
            .where(embedding_jobs.c.id == job.id, running)
            .values(status="finalizing", finalizing_at=self._clock(), error=error, **known)
        )
        async with self._store.writing() as connection:
            await self._require_lease(connection, job, holder)
            await connection.execute(closed)

    async def finish(
        self, job: EmbeddingJob, holder: str, done: Done, output: File | None, error: File | None
    ) -> None:
        """End a closed job, and make files of what was gathered, of which nobody knows yet."""
        values = {"error": job.error, **asdict(done)}
        made = output, error
        await self._end(job, holder, _outcome(job), values, self._files, made, job.input_file_id)

    async def unfinished(self, names: Iterable[str]) -> set[str]:
        """Return those of some jobs that have not ended."""
        of, found = embedding_jobs.c, set()
        async with self._store.reading() as connection:
            for some in divided(names):
                statement = select(of.id).where(of.id.in_(some), of.status.in_(UNFINISHED))
                found |= set((await connection.execute(statement)).scalars())
        return found

    async def overview(self) -> Overview:
        """Return what there is to do, and what was done, of all accounts."""
        of = embedding_jobs.c
        unfinished = (
            select(of.status, func.count()).where(of.status.in_(UNFINISHED)).group_by(of.status)
        )
        async with self._store.reading() as connection:
            rows = (await connection.execute(unfinished)).all()
            done = select(func.sum(of.completed), func.sum(of.failed))
            completed, failed = (await connection.execute(done)).one()
        return Overview(
            {status: int(count) for status, count in rows}, int(completed or 0), int(failed or 0)
        )


def _outcome(job: EmbeddingJob) -> BatchStatus:
    if job.status == "cancelling":
        return "cancelled"
    return "completed" if job.error is None else "failed"
