"""What answers units of batches: an actor for one model, and how it is asked."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from deployments.batch_pool import UNITS_AT_ONCE, WorkerDied
from deployments.gathering import GatheringBackend
from deployments.metrics import export
from deployments.names import deployment_name
from deployments.placing import engine_options
from deployments.serving import serve_models
from omai_ray.api.accounting import Accountant
from omai_ray.api.in_process import InProcessApi
from omai_ray.api.measures import Measures
from omai_ray.batches.answering import Answers, UnitWorker
from omai_ray.batches.check import UNIT_INPUTS
from omai_ray.batches.queue import BatchQueue
from omai_ray.catalog import ModelSpec
from omai_ray.errors import OMAiError
from omai_ray.files import Contents, Files
from omai_ray.garbage import start_uncollected
from omai_ray.identity.directory import Directory
from omai_ray.ledger import UsageLedger
from omai_ray.priority import give_way_to_servers
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.quota.gate import Gate
from omai_ray.settings import Settings, Tier
from omai_ray.store import BatchUnit, Store
from omai_ray.telemetry.logs import configure_logs
from omai_ray.telemetry.recorder import Recorder

SHARED_CPUS = 0.1
"""What a worker reserves that asks the replicas that serve."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What a worker is for. settings: with its model only. app: Serve's name of what serves it."""

    settings: Settings
    app: str

    @classmethod
    def of(cls, settings: Settings, app: str, spec: ModelSpec) -> Work:
        """Return the work for a model of the catalog."""
        names = (spec.name, *spec.adapters)
        aliases = {alias: name for alias, name in settings.aliases.items() if name in names}
        return cls(settings.model_copy(update={"models": (spec,), "aliases": aliases}), app)

    @cached_property
    def key(self) -> str:
        """What tells it from other work: a worker does what it was started with, to its end."""
        return f"{self.app}\n{self.settings.model_dump_json()}"

    @property
    def spec(self) -> ModelSpec:
        """The model's entry."""
        return self.settings.models[0]

    @property
    def own(self) -> bool:
        """Whether a worker has an engine of its own."""
        return self.settings.batches.backend_of(self.spec.name) == "own"

    @property
    def options(self) -> dict[str, Any]:
        """What a worker reserves, and where it may be."""
        if not self.own:
            return {"num_cpus": SHARED_CPUS}
        options = engine_options(self.spec)
        if not self.spec.num_gpus:
            options["num_cpus"] = max(1.0, self.spec.num_cpus)
        return options


class RayWorker:
    """Implements Worker by an actor that ends with who started it."""

    def __init__(self, work: Work) -> None:
        actor: Any = ray.remote(BatchWorker)
        self._actor = actor.options(**work.options).remote(work)

    async def open(self) -> None:
        """Wait until it is ready. Raises RayError."""
        await self._actor.open.remote()

    async def do(self, unit: BatchUnit) -> str | None:
        """Have a unit answered; the worker stops where that is cancelled. Raises WorkerDied."""
        asked = self._actor.do.remote(unit)
        try:
            failure: str | None = await asked
        except asyncio.CancelledError:
            ray.cancel(asked)
            raise
        except RayActorError:
            raise WorkerDied from None
        except RayError as error:
            return type(error).__name__
        return failure

    def end(self) -> None:
        """End the process."""
        ray.kill(self._actor)


class BatchWorker:
    """Answers units by the API's own endpoints."""

    def __init__(self, work: Work) -> None:
        give_way_to_servers()
        configure_logs(work.settings.log_level, work.settings.log_file)
        self._work = work

    async def open(self) -> None:
        """Open the database, the files and the model."""
        with start_uncollected():
            await self._open()

    async def _open(self) -> None:
        work, settings = self._work, self._work.settings
        stored = await Stored(settings).__aenter__()  # it ends with the process
        backend = _engine(work.spec) if work.own else _replicas(work)
        models = await asyncio.to_thread(serve_models, settings, {work.spec.name: backend})
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
        if work.own:
            answers = self._watched(answers, backend)
        self._units = UnitWorker(
            stored.queue,
            stored.contents,
            answers,
            Directory(stored.store).owner,
            _in_flight(settings),
        )

    async def do(self, unit: BatchUnit) -> str | None:
        """Do a unit, and say why it could not be done; the log has more."""
        try:
            await self._units.do(unit)
        except OMAiError as error:
            return error.message
        except Exception as error:
            _log.exception("a unit failed")
            return type(error).__name__
        return None

    def _watched(self, answers: Answers, backend: Any) -> Answers:
        from deployments.engines import HealthyAnswers

        healthy = HealthyAnswers(answers, backend.ready)
        self._watching = asyncio.create_task(healthy.watch())
        return healthy


def _in_flight(settings: Settings) -> int:
    """Return how many lines are under way at once: whole units of embeddings, for large steps."""
    (spec,) = settings.models
    return (
        UNITS_AT_ONCE * UNIT_INPUTS if spec.task == "embedding" else settings.batches.max_in_flight
    )


def _engine(spec: ModelSpec) -> Any:
    from deployments.engines import ENGINE_CALLS, engine_backend

    backend = engine_backend(spec)
    return backend if spec.task == "chat" else GatheringBackend(backend, UNIT_INPUTS, ENGINE_CALLS)


def _replicas(work: Work) -> Any:
    # Here: what has an engine of its own needs nothing of Serve, which takes long to import.
    from ray import serve

    from deployments.backends import HandleChatBackend, HandleEmbeddingBackend

    handle = serve.get_deployment_handle(deployment_name(work.spec.name), work.app)
    if work.spec.task == "chat":
        return HandleChatBackend(handle, "batch")
    return GatheringBackend(HandleEmbeddingBackend(handle, "batch"))


class Stored:
    """The database and the files, open within."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> Stored:
        self.store = await Store.open(self._settings.sqlalchemy_url)
        self.contents = await asyncio.to_thread(Contents.at, self._settings.files_location)
        self.queue = BatchQueue(self.store, Files(self.store, self.contents), time.time)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()
        await asyncio.to_thread(self.contents.close)
