"""Batches on the cluster: an actor that drives them, and workers that answer their lines.

The driver is detached and named, so that any ingress replica starts the only one; Ray starts it
again where it dies, and it goes on from what the database has.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import ray

from deployments.batch_pool import Room, Worker, WorkerPool
from deployments.batch_worker import RayWorker, Stored, Work
from deployments.detached import detached, forget, keep, kept
from deployments.embedding_jobs import job_driver
from deployments.metrics import export
from omai_ray.batches.driver import Driver, Rules
from omai_ray.catalog import ModelSpec
from omai_ray.errors import OMAiError, Overloaded
from omai_ray.free_nodes import free_nodes
from omai_ray.identity.directory import Directory
from omai_ray.settings import Settings
from omai_ray.store import Batch, BatchUnit
from omai_ray.telemetry.logs import configure_logs
from omai_ray.telemetry.recorder import Recorder

_RESTART_S = 5.0
_LOOK_S, _LOOKS = 10.0, 3
"""Seconds between looks for the application; how many in a row do not find one that is gone."""

_log = logging.getLogger(__name__)


def driver_name(settings: Settings) -> str:
    """Return the name of the actor that drives the batches of a database."""
    digest = hashlib.sha256(settings.sqlalchemy_url.encode())
    return f"omai-batches-{digest.hexdigest()[:12]}"


def start_driver(settings: Settings, app: str) -> Any:
    """Return the driver, started where it is not there, with these settings. app: Serve's name."""
    name = driver_name(settings)
    actor = detached(BatchDriver, name, name, settings, app, max_task_retries=-1)
    actor.configure.remote(settings, app)
    return actor


class BatchDriver:
    """Runs the driver in a thread; what it was last configured with outlives it."""

    def __init__(self, name: str, settings: Settings, app: str) -> None:
        self._key = f"{name}-settings".encode()
        configure_logs(settings.log_level, settings.log_file)
        settings, app = _last_configured(self._key) or (settings, app)
        self._settings = settings
        self._app = app
        configure_logs(settings.log_level, settings.log_file)
        self._recorder = Recorder()
        export(self._recorder, lambda: None)
        self._loop = _Loop("batches")
        self._driver: Driver | None = None
        self._running = self._loop.begin(self._run())
        self._loop.begin(self._end_with_app())

    def configure(self, settings: Settings, app: str) -> None:
        """Go over to other settings, batches going on; how they are run is theirs to begin with."""
        keep(self._key, f"{app}\n{settings.model_dump_json()}".encode())
        anew = _must_begin_anew(self._settings, settings)
        self._settings = settings
        self._app = app
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
        executor = PooledExecutor(self)
        try:
            async with (
                Stored(settings) as stored,
                job_driver(
                    lambda: self._settings, stored.store, stored.contents, self._recorder
                ) as jobs,
            ):
                self._driver = driver = Driver(
                    stored.queue,
                    stored.contents,
                    executor,
                    Directory(stored.store).owner,
                    _rules(settings),
                    max_running=settings.batches.max_running,
                    recorder=self._recorder,
                )
                async with asyncio.TaskGroup() as group:
                    group.create_task(driver.run())
                    group.create_task(jobs.run())
        finally:
            executor.close()

    async def _end_with_app(self) -> None:
        """End this actor, and with it its workers, once the application is served no more."""
        await gone(lambda: _is_served(self._app))
        _log.info("batches: '%s' is not served any more", self._app)
        self._running.cancel()
        forget(self._key)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    @property
    def settings(self) -> Settings:
        """What it was last configured with."""
        return self._settings

    @property
    def app(self) -> str:
        """Serve's name of the application that it is of."""
        return self._app


def _last_configured(key: bytes) -> tuple[Settings, str] | None:
    """Return what a driver was last configured with, None where that is nothing, or not read."""
    last = kept(key)
    if last is None:
        return None
    app, _, values = last.decode().partition("\n")
    try:
        return Settings.model_validate_json(values), app
    except ValueError:  # another version kept it; what it says may repeat the values
        _log.warning("batches: what the driver was last configured with cannot be read")
        return None


async def gone(is_served: Callable[[], bool], every_s: float = _LOOK_S) -> None:
    """Return once several looks in a row find nothing; one that fails tells nothing."""
    missed = 0
    while missed < _LOOKS:
        await asyncio.sleep(every_s)
        try:
            missed = 0 if await asyncio.to_thread(is_served) else missed + 1
        except Exception:
            _log.warning("batches: Serve does not say what it serves", exc_info=True)


def _is_served(app: str) -> bool:
    """Whether Serve has an application, in whatever state. Blocking."""
    from ray import serve

    return app in serve.status().applications


def _must_begin_anew(before: Settings, after: Settings) -> bool:
    """Whether settings differ in what a driver has from its start on."""

    def begun_with(settings: Settings) -> tuple[object, ...]:
        return settings.batches, settings.embedding_jobs.max_running, settings.files_location

    return begun_with(before) != begun_with(after)


def _rules(settings: Settings) -> Rules:
    return Rules(settings.catalog, settings.tiers, settings.ingress.max_body_bytes)


class PooledExecutor:
    """Has units answered by workers that stay for the next batch of their model.

    Ended by `close`, and with it the workers.
    """

    def __init__(self, driver: BatchDriver) -> None:
        self._driver = driver
        self._pools: dict[str, tuple[Work, WorkerPool]] = {}
        self._room = Room()

    async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
        """Return once each unit was tried; cancelled, workers stop with what they are at.

        Raises Overloaded where the model is none that is served now, or no worker can be started.
        """
        settings = self._driver.settings
        spec = _base_of(settings, batch.model or "")
        await self._pool(Work.of(settings, self._driver.app, spec)).run(units)

    def close(self) -> None:
        """End all workers."""
        for _, pool in self._pools.values():
            pool.close()

    def _pool(self, work: Work) -> WorkerPool:
        self._pools = {key: entry for key, entry in self._pools.items() if not entry[1].empty}
        if work.key not in self._pools:

            async def start() -> Worker:
                await self._make_room(work, pool)
                return RayWorker(work)

            batches = work.settings.batches
            pool = WorkerPool(start, batches.workers, batches.idle_s, self._room)
            self._pools[work.key] = work, pool
        return self._pools[work.key][1]

    async def _make_room(self, work: Work, pool: WorkerPool) -> None:
        """Have other work's workers end where no node has enough free for one more.

        Idle ones end at once; busy ones with their units, where what all hold is enough.
        """
        needed = _reserved(work)
        nodes = await asyncio.to_thread(free_nodes, work.options)
        if any(all(node.get(name, 0.0) >= needed[name] for name in needed) for node in nodes):
            return
        free = {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}
        short = {name: needed[name] - free[name] for name in needed}
        others = [entry for key, entry in self._pools.items() if key != work.key]
        for name in short:
            short[name] -= sum(len(each) * _reserved(other)[name] for other, each in others)
        for _, each in others:
            each.end_idle()
        if all(amount <= 0 for amount in short.values()):
            self._room.want(pool)


def _reserved(work: Work) -> dict[str, float]:
    """Return what a worker reserves of the cluster."""
    return {"CPU": work.options["num_cpus"], "GPU": work.options.get("num_gpus", 0)}


def _base_of(settings: Settings, model: str) -> ModelSpec:
    """Return the entry that serves a model, which may be one of its adapters."""
    catalog = settings.catalog
    name = catalog.bases.get(model, model)
    found = [spec for spec in settings.models if spec.name == name]
    if not found:
        raise Overloaded(f"the model '{model}' is not served now")
    return found[0]


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
