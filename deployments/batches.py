"""Batches on the cluster: an actor that drives them, and workers that answer their lines.

The driver is detached and named, so that any ingress replica starts the only one; Ray starts it
again where it dies, and it goes on from what the database has.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from ray import serve

from deployments.backends import HandleChatBackend, HandleEmbeddingBackend
from deployments.detached import detached, keep, kept
from deployments.embedding_jobs import job_driver
from deployments.engines import HealthyAnswers, engine_backend
from deployments.gathering import GatheringBackend
from deployments.metrics import export
from deployments.names import deployment_name
from deployments.serving import serve_models
from omai_ray.api.accounting import Accountant
from omai_ray.api.in_process import InProcessApi
from omai_ray.api.measures import Measures
from omai_ray.batches.answering import Answers, UnitWorker
from omai_ray.batches.driver import Driver, Rules
from omai_ray.batches.queue import BatchQueue
from omai_ray.catalog import ModelSpec
from omai_ray.errors import OMAiError, Overloaded
from omai_ray.files import Contents, Files
from omai_ray.identity.directory import Directory
from omai_ray.ledger import UsageLedger
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.quota.gate import Gate
from omai_ray.settings import Settings, Tier
from omai_ray.store import Batch, BatchUnit, Store
from omai_ray.telemetry.logs import configure_logs
from omai_ray.telemetry.recorder import Recorder
from pipelines.run_batch import Pool, Work, run_units

SHARED_CPUS = 0.1
"""What a worker reserves that asks the replicas that serve."""

_RESTART_S = 5.0
_log = logging.getLogger(__name__)


def driver_name(settings: Settings) -> str:
    """Return the name of the actor that drives the batches of a database."""
    digest = hashlib.sha256(settings.sqlalchemy_url.encode())
    return f"omai-batches-{digest.hexdigest()[:12]}"


def start_driver(settings: Settings, app: str) -> Any:
    """Return the driver, started where it is not there, with these settings. app: Serve's name."""
    name = driver_name(settings)
    actor = detached(BatchDriver, name, name, settings, app, max_task_retries=-1)
    actor.configure.remote(settings)
    return actor


class BatchDriver:
    """Runs the driver in a thread; what it was last configured with outlives it."""

    def __init__(self, name: str, settings: Settings, app: str) -> None:
        self._key = f"{name}-settings".encode()
        last = kept(self._key)
        self._settings = Settings.model_validate_json(last) if last else settings
        self._app = app
        configure_logs(settings.log_level, settings.log_file)
        self._recorder = Recorder()
        export(self._recorder, lambda: None)
        self._loop = _Loop("batches")
        self._driver: Driver | None = None
        self._running = self._loop.begin(self._run())

    def configure(self, settings: Settings) -> None:
        """Go over to other settings, batches going on; how they are run is theirs to begin with."""
        keep(self._key, settings.model_dump_json().encode())
        anew = _must_begin_anew(self._settings, settings)
        self._settings = settings
        self._loop.call(self._reconfigure, anew)

    def _reconfigure(self, anew: bool) -> None:
        if anew:
            self._running.cancel()
            self._running = self._loop.begin(self._run())
        elif self._driver is not None:
            self._driver.rules = _rules(self._settings)

    async def _run(self) -> None:
        while True:
            try:
                await self._drive()
            except OMAiError as error:
                _log.error("batches: %s", error.message)
            except Exception:
                _log.exception("batches")
            await asyncio.sleep(_RESTART_S)

    async def _drive(self) -> None:
        settings = self._settings
        async with (
            _Stored(settings) as stored,
            job_driver(
                lambda: self._settings, stored.store, stored.contents, self._recorder
            ) as jobs,
        ):
            self._driver = driver = Driver(
                stored.queue,
                stored.contents,
                RayDataExecutor(self, self._app),
                Directory(stored.store).owner,
                _rules(settings),
                max_running=settings.batches.max_running,
                recorder=self._recorder,
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(driver.run())
                group.create_task(jobs.run())

    @property
    def settings(self) -> Settings:
        """What it was last configured with."""
        return self._settings


def _must_begin_anew(before: Settings, after: Settings) -> bool:
    """Whether settings differ in what a driver has from its start on."""

    def begun_with(settings: Settings) -> tuple[object, ...]:
        return settings.batches, settings.embedding_jobs.max_running, settings.files_location

    return begun_with(before) != begun_with(after)


def _rules(settings: Settings) -> Rules:
    return Rules(settings.catalog, settings.tiers, settings.ingress.max_body_bytes)


class RayDataExecutor:
    """Has a batch's units answered by a Ray Data job."""

    def __init__(self, driver: BatchDriver, app: str) -> None:
        self._driver = driver
        self._app = app

    async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
        """Return once each unit was tried; the job's thread ends with its next unit if cancelled.

        Raises Overloaded where the model is none that is served now.
        """
        settings = self._driver.settings
        spec = _base_of(settings, batch.model or "")
        own = settings.batches.backend_of(spec.name) == "own"
        factory = WorkerFactory(settings, self._app, spec.name, own)
        pool = _pool(settings, spec, own)
        stopped = threading.Event()

        def job() -> None:
            for failure in run_units(factory, [json.dumps(asdict(unit)) for unit in units], pool):
                if failure is not None:
                    _log.warning("%s: a unit is left for later: %s", batch.id, failure)
                if stopped.is_set():
                    return

        thread = ThreadPoolExecutor(1, thread_name_prefix="batch-job")
        try:
            await asyncio.get_running_loop().run_in_executor(thread, job)
        finally:
            stopped.set()
            thread.shutdown(wait=False)


def _base_of(settings: Settings, model: str) -> ModelSpec:
    """Return the entry that serves a model, which may be one of its adapters."""
    catalog = settings.catalog
    name = catalog.bases.get(model, model)
    found = [spec for spec in settings.models if spec.name == name]
    if not found:
        raise Overloaded(f"the model '{model}' is not served now")
    return found[0]


def _pool(settings: Settings, spec: ModelSpec, own: bool) -> Pool:
    workers = settings.batches.workers
    if not own:
        return Pool(workers, SHARED_CPUS)
    gpu = spec.num_gpus > 0
    return Pool(workers, spec.num_cpus if gpu else max(1.0, spec.num_cpus), spec.num_gpus)


@dataclass(frozen=True)
class WorkerFactory:
    """Makes a worker, in the actor that it works in. own: with an engine of its own."""

    settings: Settings
    app: str
    model: str
    own: bool

    def __call__(self) -> Work:
        """Return what does units."""
        return _Worker(self)


class _Worker:
    """Answers units by the API's own endpoints, for one model."""

    def __init__(self, made: WorkerFactory) -> None:
        settings = made.settings
        configure_logs(settings.log_level, settings.log_file)
        spec = _base_of(settings, made.model)
        aliases = {
            alias: name
            for alias, name in settings.aliases.items()
            if name in (spec.name, *spec.adapters)
        }
        self._settings = settings.model_copy(update={"models": (spec,), "aliases": aliases})
        self._made = made
        self._loop = _Loop("batch-worker")
        self._unit_worker = self._loop.begin(self._open(spec)).result()

    def __call__(self, unit: str) -> str | None:
        """Do a unit, and say why it could not be done; the log has more."""
        try:
            self._loop.begin(self._unit_worker.do(BatchUnit(**json.loads(unit)))).result()
        except OMAiError as error:
            return error.message
        except Exception as error:
            _log.exception("a unit failed")
            return type(error).__name__
        return None

    async def _open(self, spec: ModelSpec) -> UnitWorker:
        settings = self._settings
        stored = await _Stored(settings).__aenter__()  # it ends with the process
        backend = engine_backend(spec) if self._made.own else self._handles(spec)
        models = await asyncio.to_thread(serve_models, settings, {spec.name: backend})
        ledger = UsageLedger(stored.store)
        # Batches have no minute's limits: what is enqueued of them is bounded.
        unlimited = Tier(requests_per_minute=None, tokens_per_minute=None)
        gate = Gate(
            InProcessBuckets(),
            dict.fromkeys(settings.tiers, unlimited),
            MonthlyBudgets(ledger.tokens_in_month, answer_s=stored.store.patience_s),
        )
        recorder = Recorder()
        export(recorder, lambda: None)
        answers: Answers = InProcessApi(models, Accountant(gate, ledger, Measures(recorder)))
        if self._made.own:
            healthy = HealthyAnswers(answers, backend.ready)
            self._watching = asyncio.create_task(healthy.watch())
            answers = healthy
        return UnitWorker(
            stored.queue,
            stored.contents,
            answers,
            Directory(stored.store).owner,
            settings.batches.max_in_flight,
        )

    def _handles(self, spec: ModelSpec) -> Any:
        handle = serve.get_deployment_handle(deployment_name(spec.name), self._made.app)
        if spec.task == "chat":
            return HandleChatBackend(handle, "batch")
        return GatheringBackend(HandleEmbeddingBackend(handle, "batch"))


class _Stored:
    """The database and the files, open within."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> _Stored:
        self.store = await Store.open(self._settings.sqlalchemy_url)
        self.contents = await asyncio.to_thread(Contents.at, self._settings.files_location)
        self.queue = BatchQueue(self.store, Files(self.store, self.contents), time.time)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()
        await asyncio.to_thread(self.contents.close)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()

    def begin(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there; return its future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Any, *args: Any) -> None:
        """Call a function there."""
        self._loop.call_soon_threadsafe(work, *args)
