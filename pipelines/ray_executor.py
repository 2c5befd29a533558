"""Units of work on a pool of Ray Data actors; rows never travel through the object store."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Generator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

import ray
import ray.exceptions

from omai_ray.catalog import ModelSpec
from omai_ray.errors import ConfigError, OMAiError
from omai_ray.free_nodes import free_nodes
from omai_ray.garbage import start_uncollected
from pipelines.engine import EngineFacts, describe_engine
from pipelines.errors import RunFailed, brief
from pipelines.job import EmbedJob
from pipelines.job_metrics import JobMetrics
from pipelines.plan import Unit
from pipelines.pool import PoolSize, reserved_cpus, size_pool
from pipelines.ray_actors import Board, EmbedWorker, Pump
from pipelines.ray_quiet import quiet_ray_data, quiet_ray_start
from pipelines.run import Tick
from pipelines.unit import UnitResult, UnitSettings

OBJECT_STORE_BYTES = 256 << 20  # of a Ray started for the job: it carries units, never rows
MAX_BLOCKS = 4096
CONNECT_TIMEOUT_S = 5.0


class RayExecutor:
    """A context manager: joins the Ray that is there, or starts one for the job and ends it."""

    def __init__(self, job: EmbedJob) -> None:
        self._job = job
        self._reserved: dict[str, Any] = {
            "num_cpus": reserved_cpus(job),
            "num_gpus": job.model.num_gpus,
            **job.model.where,
        }
        self._joined = False
        self._pool = PoolSize(0, 0, 0)
        self.actors = 0

    def __enter__(self) -> RayExecutor:
        if not ray.is_initialized():
            _connect(self._job.address)
            self._joined = True
        try:
            own = self._joined and self._job.address is None
            if own:  # one node, and it is this machine
                self._reserved.pop("label_selector", None)
            self._pool = size_pool(self._job, free_nodes(self._reserved), own=own)
            self.actors = self._pool.most
        except OMAiError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._joined:
            ray.shutdown()

    def describe(self) -> EngineFacts:
        """Load the model once in a worker, as the actors will, and return its facts."""
        probe: Any = ray.remote(max_calls=1, **self._reserved)(_describe)  # its memory goes with it
        try:
            facts: EngineFacts = ray.get(probe.remote(self._job.engine_factory, self._job.model))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OMAiError):
                raise cause from None
            raise RunFailed(f"model '{self._job.model.name}' cannot be loaded: {cause}") from error
        except ray.exceptions.RayError as error:
            raise RunFailed(f"the worker that loads the model died: {brief(error)}") from error
        return facts

    def run(
        self, units: Sequence[Unit], settings: UnitSettings, tick: Tick
    ) -> Generator[UnitResult, None, None]:
        """Yield results as units are committed; raise RunFailed where one cannot be done."""
        board: Any = ray.remote(Board).options(num_cpus=0).remote()
        job = JobMetrics(tick, self._job.metrics_model, sum(unit.rows for unit in units))
        with quiet_ray_data(), job, Pump(board, job.tick):
            try:
                for row in self._dataset(units, settings, board).iter_rows():
                    result = _result(json.loads(row["result"]))
                    job.committed(result)
                    yield result
            except OMAiError:
                raise
            except Exception as error:  # Ray Data raises what it, a worker or a cluster died of
                raise RunFailed(
                    f"Ray ended the job: {brief(error)}. The same command resumes"
                ) from error
            finally:
                ray.kill(board)

    def _dataset(self, units: Sequence[Unit], settings: UnitSettings, board: Any) -> Any:
        import ray.data

        items = [{"unit": json.dumps(asdict(unit))} for unit in units]
        model = self._job.model
        return ray.data.from_items(
            items, override_num_blocks=min(len(items), MAX_BLOCKS)
        ).map_batches(
            EmbedWorker,
            batch_size=1,
            batch_format="numpy",
            compute=actor_strategy(self._pool.fit(len(units))),
            fn_constructor_args=(self._job.engine_factory, model, settings, board),
            **self._reserved,
        )


def actor_strategy(pool: PoolSize) -> Any:
    """Return Ray Data's strategy for a pool: it adds actors while those there are busy."""
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        min_size=pool.least,
        initial_size=pool.first,
        max_size=pool.most,
        max_tasks_in_flight_per_actor=2,
    )


_NO_RAY = (
    ConnectionError,
    ValueError,
    RuntimeError,
    TimeoutError,
    ray.exceptions.AuthenticationError,  # a cluster with a token, and none here, or another
)


def _connect(address: str | None) -> None:
    """Join a cluster, or start a Ray of this process. Raises ConfigError where neither works."""
    _check_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        with quiet_ray_start():
            ray.init(address=address or "local", **options)
    except _NO_RAY as error:
        where = "a local Ray cannot be started" if address is None else f"no Ray at {address}"
        raise ConfigError(f"{where}: {brief(error)}") from error


def _check_reachable(address: str | None) -> None:
    """Raise ConfigError for a `host:port` where nobody listens: Ray would try for many minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal() or "://" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray at {address}: {error}") from None


def _describe(factory: Any, model: ModelSpec) -> EngineFacts:
    with start_uncollected():
        return describe_engine(factory(model))


def _result(values: dict[str, Any]) -> UnitResult:
    """Return a unit's result, or raise the failure that came instead."""
    if "failure" in values:
        raise RunFailed(values["failure"])
    return UnitResult(**values)
