"""Drives embedding jobs from state to state: whatever dies, another driver goes on.

validating → in_progress → finalizing → completed or failed; or cancelling → cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace

from omai_ray.batches.answering import Owner
from omai_ray.batches.check import BYTES_PER_TOKEN
from omai_ray.batches.driving import LEASE_S, POLL_S, Driving
from omai_ray.batches.leases import UNFINISHED, LeaseLost
from omai_ray.batches.results import MISSED_S
from omai_ray.batches.turns import Turns
from omai_ray.batches.watch import Sleep
from omai_ray.catalog import Catalog
from omai_ray.embedding_jobs.queue import Done, JobError, JobQueue
from omai_ray.embedding_jobs.runner import Joined, Refused, Runner
from omai_ray.errors import OMAiError, QuotaExceeded, ServerError
from omai_ray.files.names import file_id
from omai_ray.identity.principal import Principal
from omai_ray.ledger import UsageLedger, UsageRecord
from omai_ray.quota.budgets import Spend
from omai_ray.quota.tiers import tier_of
from omai_ray.settings import Tier
from omai_ray.store import EmbeddingJob, File
from omai_ray.telemetry import metrics
from omai_ray.telemetry.recorder import Recorder

ENDPOINT = "/v1/embedding_jobs"
MAX_ATTEMPTS = 8
"""Of a job that makes no progress, over some three minutes."""
_FAILED = (
    f"The job stopped, and trying again {MAX_ATTEMPTS} times did not help. The server's log says "
    "why."
)
_EXCESS = "token_limit_exceeded"
_LOST = JobError("results_lost", "What the job has done is no longer where it was written.")


@dataclass(frozen=True)
class JobRules:
    """What holds for jobs."""

    catalog: Catalog
    tiers: Mapping[str, Tier]


class JobDriver(Driving[EmbeddingJob]):
    """Does what jobs there are; of any number of drivers, each job has one.

    rules: as they are now. require_budget: raises QuotaExceeded where an account may not use so
    many tokens. max_running: jobs at once. clock: seconds since the epoch.
    """

    def __init__(
        self,
        queue: JobQueue,
        runner: Runner,
        owner: Owner,
        ledger: UsageLedger,
        rules: Callable[[], JobRules],
        require_budget: Callable[[Principal, int], Awaitable[Spend]],
        *,
        max_running: int,
        lease_s: float = LEASE_S,
        poll_s: float = POLL_S,
        clock: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(queue, lease_s=lease_s, poll_s=poll_s, sleep=sleep)
        self._rules = rules
        self._require_budget = require_budget
        self._queue = queue
        self._runner = runner
        self._owner = owner
        self._ledger = ledger
        self._turns = Turns(max_running)
        self._clock = clock
        self._recorder = recorder or Recorder()
        self._told: dict[str, Done] = {}
        self._troubles: dict[str, tuple[int, Done]] = {}
        self._files: dict[str, tuple[str, str]] = {}
        self._at_work: dict[str, tuple[EmbeddingJob, Spend]] = {}
        self._admission = asyncio.Lock()  # or two would each be refused for the other

    async def observe(self) -> None:
        """Tell the recorder what there is to do, and what was done."""
        seen, recorder = await self._queue.overview(), self._recorder
        for status in UNFINISHED:
            recorder.set(metrics.EMBEDDING_JOBS, seen.unfinished.get(status, 0), status)
        recorder.count_to(metrics.EMBEDDING_JOB_ROWS, seen.completed, "completed")
        recorder.count_to(metrics.EMBEDDING_JOB_ROWS, seen.failed, "failed")

    async def _sweep(self) -> None:
        """Remove directories of jobs that have ended: a driver may die before it does so."""
        names = await self._runner.leftovers()
        for name in set(names) - await self._queue.unfinished(names):
            await self._runner.discard(name)

    def _leave(self, name: str) -> None:
        self._told.pop(name, None)
        self._troubles.pop(name, None)
        self._files.pop(name, None)
        self._at_work.pop(name, None)

    async def _step(self, name: str) -> bool:
        """Take a job one state further; whether that was its last one."""
        job = await self._queue.read(name)
        if job.status in ("finalizing", "cancelling"):
            await self._finish(job)
            return True
        if job.status == "validating":
            await self._attempt(job, self._validate)
            return False
        if job.status == "in_progress":
            await self._attempt(job, self._run)
            return False
        return True

    async def _attempt(
        self, job: EmbeddingJob, work: Callable[[EmbeddingJob], Awaitable[JobError | None]]
    ) -> None:
        """Do some work, or close the job with what it fails by. Raises what may pass."""
        try:
            problem = await work(job)
        except Refused as refused:
            problem = JobError("invalid_job", str(refused))
        except LeaseLost:
            raise
        except Exception as error:
            if isinstance(error, OMAiError) and error.status < 500:
                problem = JobError(error.code or "invalid_job", error.message)
            elif not self._is_given_up(job):
                raise
            else:
                problem = JobError("job_failed", _FAILED)
        if problem is not None:
            await self._queue.close(job, self.holder, problem)

    def _is_given_up(self, job: EmbeddingJob) -> bool:
        """Whether a job had its last attempt, having made no progress since the first one."""
        done = self._told.get(job.id, Done())
        attempts, before = self._troubles.get(job.id, (0, done))
        attempts = attempts + 1 if before == done else 1
        self._troubles[job.id] = attempts, done
        return attempts >= MAX_ATTEMPTS

    async def _validate(self, job: EmbeddingJob) -> JobError | None:
        owner = await self._owner(job.account_id, job.key_id)
        owner.require_model(job.model, *self._names(job.model))
        limit = tier_of(owner.tier, self._rules().tiers).batch_enqueued_tokens
        measured = await self._runner.measure(job)
        tokens = -(-measured.bytes // BYTES_PER_TOKEN)
        await self._require_budget(owner, tokens)
        return await self._queue.begin(job, self.holder, measured.rows, tokens, limit)

    def _names(self, model: str) -> list[str]:
        """Return the aliases of a model, by which an allow-list may name it."""
        return [alias for alias, name in self._rules().catalog.aliases.items() if name == model]

    async def _run(self, job: EmbeddingJob) -> JobError | None:
        """Have the job done, and close it; leave it where it is cancelled meanwhile."""
        running = asyncio.create_task(self._in_turn(job))
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=self._poll_s)
                now = await self._noted(job)
                if now is not None and now.status != "in_progress":
                    return None
                if not running.done() and (excess := await self._excess(job)) is not None:
                    return excess
            running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await self._queue.close(job, self.holder, None, self._told.get(job.id))
        return None

    async def _in_turn(self, job: EmbeddingJob) -> None:
        async with self._turns.turn(job.account_id):
            async with self._admission:
                await self._admit(job)
            await self._runner.run(job, lambda done: self._told.update({job.id: done}))

    async def _admit(self, job: EmbeddingJob) -> None:
        owner = await self._owner(job.account_id, job.key_id)
        spend = await self._require(owner, job, job.enqueued_tokens)
        self._at_work[job.id] = job, spend  # until what it used is in the ledger

    async def _require(self, owner: Principal, job: EmbeddingJob, tokens: int) -> Spend:
        """Raise QuotaExceeded where a job of so many tokens does not fit beside those at work."""
        others = (at for at, _ in self._at_work.values() if at.account_id == job.account_id)
        beside = sum(at.enqueued_tokens for at in others if at.id != job.id)
        return await self._require_budget(owner, beside + tokens)

    async def _excess(self, job: EmbeddingJob) -> JobError | None:
        """Return what ends a job that embeds more than was estimated, and more than it may."""
        tokens = self._told.get(job.id, Done()).tokens
        if tokens <= job.enqueued_tokens:
            return None
        try:
            owner = await self._owner(job.account_id, job.key_id)
            limit = tier_of(owner.tier, self._rules().tiers).batch_enqueued_tokens
            if limit is not None and tokens > limit:
                return JobError(_EXCESS, f"The job has embedded {tokens} tokens. Limit {limit}.")
            await self._require(owner, job, tokens)
        except QuotaExceeded as error:
            return JobError(_EXCESS, error.message)
        except OMAiError as error:
            if error.status < 500:
                raise
        return None

    async def _noted(self, job: EmbeddingJob) -> EmbeddingJob | None:
        """Note how far a job is; None where the database is away, and what is at work goes on."""
        try:
            return await self._queue.progress(job, self.holder, self._told.get(job.id))
        except OMAiError:
            return None

    async def _finish(self, job: EmbeddingJob) -> None:
        now_s = self._clock()
        # At each try the same two: what one left is written over by the next.
        output, error = self._files.setdefault(job.id, (file_id(now_s), file_id(now_s)))
        done, joined, lost = await self._gathered(job, output, error)
        if done.tokens:
            await self._ledger.record(self._usage(job, done.tokens, now_s))
            if job.id in self._at_work:
                _, spend = self._at_work.pop(job.id)
                spend(done.tokens)()
        if lost is not None and job.error is None:
            job = replace(job, error=asdict(lost))
        files = [
            None if size is None else _file(job, name, kind, size, now_s)
            for name, kind, size in (
                (output, "output", joined.output_bytes),
                (error, "error", joined.error_bytes),
            )
        ]
        await self._queue.finish(job, self.holder, done, *files)
        if job.output is None:
            await self._runner.discard(job.id)

    async def _gathered(
        self, job: EmbeddingJob, output: str, error: str
    ) -> tuple[Done, Joined, JobError | None]:
        """Return what is committed, as files; what is known of it, and why, where it is not there.

        A location that is of no use is soon given up; a directory among the files that is not there
        may be one that is not mounted, and is waited for.
        """
        if job.in_progress_at is None:
            return Done(), Joined(), None
        ended = job.status == "finalizing" and job.error is None
        # All that was told of a job that came to its end is committed; of others, nobody knows.
        told = Done(job.completed, job.failed, job.tokens) if ended else Done()
        lost: JobError | None = None
        try:
            done = await self._runner.done(job)
            # An input among the files cannot change: each of its rows must have been done.
            rows, least = done.completed + done.failed, told.completed + told.failed
            if ended and job.input_file_id is not None:
                least = job.total
            if rows < least:
                lost = _LOST
                raise ServerError(f"{rows} of {least} rows are there")
            joined = Joined() if job.output else await self._runner.join(job, output, error)
        except Exception as failure:
            if job.output is not None:
                if isinstance(failure, Refused) or self._is_given_up(job):
                    return told, Joined(), lost
            elif self._clock() - (job.finalizing_at or job.cancelling_at or 0.0) > MISSED_S:
                return told, Joined(), _LOST
            raise
        return replace(done, tokens=max(done.tokens, told.tokens)), joined, None

    def _usage(self, job: EmbeddingJob, tokens: int, now_s: float) -> UsageRecord:
        """Return the job's one record: always under the same id, so that it counts once."""
        spec = self._rules().catalog.models.get(job.model)
        price = None if spec is None else spec.price
        started_s = job.in_progress_at or job.created
        return UsageRecord(
            request_id=f"use_{job.id}",
            account_id=job.account_id,
            key_id=job.key_id,
            model=job.model,
            endpoint=ENDPOINT,
            status=200,
            prompt_tokens=tokens,
            completion_tokens=0,
            cached_tokens=0,
            started_at=started_s,
            duration_ms=round((now_s - started_s) * 1000),
            cost=None if price is None else price.of(tokens, 0, 0, in_batch=True),
            batch_id=job.id,
        )


def _file(job: EmbeddingJob, name: str, kind: str, size: int, now_s: float) -> File:
    return File(
        id=name,
        account_id=job.account_id,
        purpose="batch_output",
        filename=f"{job.id}_{kind}.parquet",
        bytes=size,
        created=now_s,
        expires=None,
        in_use=0,
    )
