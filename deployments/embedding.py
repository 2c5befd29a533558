"""One replica of an embedding model, or of a reranker."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from omai_ray.autoscaling.load import ReplicaMeter
from omai_ray.catalog import ModelSpec
from omai_ray.garbage import start_uncollected
from omai_ray.priority import Priority
from omai_ray.telemetry.logs import configure_logs, request_id_var
from omai_ray.telemetry.recorder import Recorder


class EmbeddingReplica:
    """Owns one engine and the queue before it."""

    async def __init__(  # type: ignore[misc] # Serve awaits it; then the replica is ready
        self, spec: ModelSpec, log_level: str, log_file: str | None
    ) -> None:
        configure_logs(log_level, log_file)
        with start_uncollected():
            from deployments.metrics import export, sample_embedding
            from omai_ray.engines.device import limit_threads
            from omai_ray.engines.embedding.batcher import EmbeddingBatcher
            from omai_ray.engines.embedding.engine import EmbeddingEngine
            from omai_ray.engines.embedding.rerank import RerankEngine

            limit_threads(spec.num_cpus)
            engine = RerankEngine(spec) if spec.task == "rerank" else EmbeddingEngine(spec)
            self._batcher = EmbeddingBatcher(engine, spec.max_queued_requests, spec.step_timeout_s)
            await self._batcher.embed([[0]])  # no request pays for what is done at first use
        self._meter = ReplicaMeter(spec.full_requests)
        recorder = Recorder()
        export(recorder, lambda: sample_embedding(recorder, spec.name, self._batcher))

    async def embed(
        self, inputs: list[list[int]], account: str, request_id: str | None, priority: Priority
    ) -> npt.NDArray[np.float32]:
        """Return float32 [N, D] for N inputs of token ids; of a reranker a score each, [N, 1].

        request_id: of the HTTP request, for the log.
        """
        request_id_var.set(request_id)
        with self._meter.request(sum(map(len, inputs)), priority=priority) as work:
            vectors = await self._batcher.embed(inputs, account, priority)
            work.answer(0)
        return vectors

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the load that Serve's controller shows the policy."""
        return asdict(self._meter.load(time.time()))

    async def ready(self) -> None:
        """Return: being called is being ready."""
        self._batcher.check_health()

    async def check_health(self) -> None:
        """Raise where the engine can no longer answer, so that Serve replaces the replica."""
        self._batcher.check_health()
