"""Embedding jobs on the cluster: what the batches' driver has done of them, each in an actor."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions

from omai_ray.embedding_jobs.driver import JobDriver, JobRules
from omai_ray.embedding_jobs.locations import AllowedLocations
from omai_ray.embedding_jobs.queue import Done, JobQueue
from omai_ray.embedding_jobs.runner import Gathered, Measured, Refused
from omai_ray.errors import OMAiError, Overloaded
from omai_ray.files import Contents, Files
from omai_ray.identity.directory import Directory
from omai_ray.ledger import UsageLedger
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.settings import Settings
from omai_ray.storage import Location
from omai_ray.store import EmbeddingJob, Store
from omai_ray.telemetry.metrics import model_label
from omai_ray.telemetry.recorder import Recorder
from pipelines.run_embedding_job import JobActor, Tally, Task, is_final, join, measure, tally

DIRECTORY = "embedding_jobs"
"""Of the outputs that become files, beside the files themselves."""
POLL_S = 1.0
_log = logging.getLogger(__name__)
T = TypeVar("T")


@asynccontextmanager
async def job_driver(
    settings: Callable[[], Settings], store: Store, contents: Contents, recorder: Recorder
) -> AsyncIterator[JobDriver]:
    """Give what drives the jobs of a database. settings: as they are now."""
    ledger = UsageLedger(store)
    budgets = MonthlyBudgets(ledger.tokens_in_month, answer_s=store.patience_s)
    try:
        yield JobDriver(
            JobQueue(store, Files(store, contents)),
            RayJobRunner(settings, contents),
            Directory(store).owner,
            ledger,
            lambda: JobRules(settings().catalog, settings().tiers),
            budgets.require,
            max_running=settings().embedding_jobs.max_running,
            recorder=recorder,
        )
    finally:
        await ledger.close()


class RayJobRunner:
    """Has jobs done by the bulk pipeline. settings: as they are now; a job begins with them."""

    def __init__(self, settings: Callable[[], Settings], contents: Contents) -> None:
        self._settings = settings
        self._contents = contents

    async def measure(self, job: EmbeddingJob) -> Measured:
        """See Runner."""
        return Measured(*await self._thread(job, lambda: measure(self._task(job))))

    async def run(self, job: EmbeddingJob, tell: Callable[[Done], None]) -> None:
        """See Runner. The actor, and all that it started, ends with this."""
        with self._translated(job):
            task = await asyncio.to_thread(self._task, job)
        actor: Any = ray.remote(JobActor).options(num_cpus=0, max_concurrency=2).remote()
        failure: Exception | None = None
        try:
            with self._translated(job):
                await _follow(actor, task, tell)
        except Exception as error:
            failure = error
        finally:
            ray.kill(actor)
        # Committed rows alone: whether there was progress must not depend on those that were lost.
        tell(_done(await asyncio.to_thread(tally, task.output)))
        if failure is not None:
            raise failure

    async def gather(self, job: EmbeddingJob, output: str, error: str) -> Gathered:
        """See Runner."""

        def gather() -> Gathered:
            place = self._output(job)
            done = _done(tally(place))
            if job.output is not None:
                return Gathered(done)
            of = self._contents.location
            return Gathered(done, *join(place, of(output), of(error)))

        return await self._thread(job, gather)

    async def leftovers(self) -> Sequence[str]:
        """See Runner."""
        found = await asyncio.to_thread(self._contents.location(DIRECTORY).list)
        return sorted({stat.name.partition("/")[0] for stat in found})

    async def discard(self, name: str) -> None:
        """See Runner."""
        await asyncio.to_thread(_remove, self._contents.location(DIRECTORY).child(name))

    async def _thread(self, job: EmbeddingJob, work: Callable[[], T]) -> T:
        with self._translated(job):
            return await asyncio.to_thread(work)

    def _task(self, job: EmbeddingJob) -> Task:
        settings = self._settings()
        spec = settings.catalog.models.get(job.model)
        if spec is None:
            raise Overloaded(f"the model '{job.model}' is not served now")
        source, within = self._source(job)
        return Task(
            source=source,
            output=self._output(job),
            within=within,
            model=spec,
            how=job.task,
            metrics_model=model_label(spec.name, settings.catalog.models),
            actors=settings.embedding_jobs.workers,
        )

    def _source(self, job: EmbeddingJob) -> tuple[Location, Path | None]:
        if job.input_file_id is not None:
            return self._contents.location(job.input_file_id), None
        place, entry = self._allowed("input", str(job.input), job)
        return place, entry.local_path if entry.is_local else None

    def _output(self, job: EmbeddingJob) -> Location:
        if job.output is None:
            return self._contents.location(DIRECTORY).child(job.id)
        return self._allowed("output", job.output, job)[0]

    def _allowed(self, field: str, given: str, job: EmbeddingJob) -> tuple[Location, Location]:
        """Look once more: what is allowed, or where links lead, may be another by now."""
        allowed = AllowedLocations(self._settings().embedding_jobs.locations)
        return allowed.resolve(field, given, job.account_id)

    @contextmanager
    def _translated(self, job: EmbeddingJob) -> Iterator[None]:
        """Turn what a job can never be done for into Refused; its owner sees no places of ours."""
        try:
            yield
        except OMAiError as error:
            _log.warning("%s: %s", job.id, error.message)
            if error.status < 500 or is_final(error):
                raise Refused(self._shown(error.message)) from None
            raise

    def _shown(self, message: str) -> str:
        entries = map(Location.parse, self._settings().embedding_jobs.locations)
        for place in (self._contents.root, *entries):
            if options := place.uri.removeprefix(str(place)):
                message = message.replace(options, "")
        return message.replace(f"{self._contents.root}/", "")


async def _follow(actor: Any, task: Task, tell: Callable[[Done], None]) -> None:
    """Have an actor run a task, and tell how far it is. Raises OMAiError, or one of Ray's."""
    try:
        running = asyncio.wrap_future(actor.run.remote(task).future())
        while not (await asyncio.wait({running}, timeout=POLL_S))[0]:
            tell(_done(await asyncio.wrap_future(actor.progress.remote().future())))
        running.result()
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OMAiError):
            raise error.cause from None
        raise


def _done(found: Tally) -> Done:
    return Done(found.written, found.dead, found.tokens)


def _remove(directory: Location) -> None:
    if directory.is_local:
        shutil.rmtree(directory.local_path, ignore_errors=True)
        return
    for stat in directory.list():
        directory.child(stat.name).delete()
