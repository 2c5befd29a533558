"""Embedding jobs on the cluster: what the batches' driver has done of them, each in an actor."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from omai_ray.embedding_jobs.driver import JobDriver, JobRules
from omai_ray.embedding_jobs.locations import AllowedLocations
from omai_ray.embedding_jobs.queue import Done, JobQueue
from omai_ray.embedding_jobs.runner import Joined, Measured, Refused
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
APART = 4
"""Processes that look at inputs and outputs at once: an account may have a hundred jobs."""
_log = logging.getLogger(__name__)


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


async def apart(work: Callable[..., Any], *values: Any) -> Any:
    """Return what some work gives in a process of its own, once: what it reads may be its end."""
    made = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(work).remote(*values)
    try:
        with _causes():
            return await asyncio.wrap_future(made.future())
    except asyncio.CancelledError:
        ray.cancel(made, force=True)
        raise


class RayJobRunner:
    """Has jobs done by the bulk pipeline. settings: as they are now; a job begins with them.

    apart: how content that is an account's is looked at.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        contents: Contents,
        apart: Callable[..., Awaitable[Any]] = apart,
    ) -> None:
        self._settings = settings
        self._contents = contents
        self._made_apart = apart
        self._few = asyncio.Semaphore(APART)

    async def measure(self, job: EmbeddingJob) -> Measured:
        """See Runner."""
        with self._translated(job):
            task = await asyncio.to_thread(self._task, job)
            return Measured(*await self._apart(measure, task))

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
        if failure is not None:
            # Of committed rows alone: whether there was progress must not depend on lost ones.
            tell(_done(await self._apart(tally, task.output)))
            raise failure

    async def done(self, job: EmbeddingJob) -> Done:
        """See Runner."""
        with self._translated(job):
            place = await asyncio.to_thread(self._output, job)
            return _done(await self._apart(tally, place))

    async def join(self, job: EmbeddingJob, output: str, error: str) -> Joined:
        """See Runner."""
        of = self._contents.location
        with self._translated(job):
            return Joined(*await self._apart(join, self._output(job), of(output), of(error)))

    async def leftovers(self) -> Sequence[str]:
        """See Runner."""
        found = await asyncio.to_thread(self._contents.location(DIRECTORY).list)
        return sorted({stat.name.partition("/")[0] for stat in found})

    async def discard(self, name: str) -> None:
        """See Runner."""
        await asyncio.to_thread(_remove, self._contents.location(DIRECTORY).child(name))

    async def _apart(self, work: Callable[..., Any], *values: Any) -> Any:
        async with self._few:
            return await self._made_apart(work, *values)

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
            _log.warning("%s: %s", job.id, type(error).__name__)  # a template is its owner's
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
    with _causes():
        running = asyncio.wrap_future(actor.run.remote(task).future())
        while not (await asyncio.wait({running}, timeout=POLL_S))[0]:
            tell(_done(await asyncio.wrap_future(actor.progress.remote().future())))
        running.result()
        # The actor's last word: what is in a location is its account's to delete.
        tell(_done(await asyncio.wrap_future(actor.progress.remote().future())))


@contextmanager
def _causes() -> Iterator[None]:
    """Raise what another process raised, where that is an OMAiError."""
    try:
        yield
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
