"""The API's backends over an engine in this process, for batches with engines of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.text import ChatDelta, ChatGenerator, ChatJob
from omai_ray.text.tokenizer import TextTokenizer


class EngineChatBackend:
    """Implements ChatBackend."""

    def __init__(self, spec: ModelSpec) -> None:
        from omai_ray.engines.chat.create import create_engine

        self._engine = create_engine(spec)
        self._engine.start()
        self._generator = ChatGenerator(self._engine, TextTokenizer(locate(spec)))

    def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gain."""
        return self._generator.stream(job)

    async def answer(self, job: ChatJob, choices: list[ChatDelta]) -> None:
        """Complete the choices."""
        await self._generator.answer(job, choices)

    async def ready(self) -> None:
        """Raise where the engine can no longer answer."""
        self._engine.check_health()


class EngineEmbeddingBackend:
    """Implements EmbeddingBackend."""

    def __init__(self, spec: ModelSpec) -> None:
        from omai_ray.engines.embedding.batcher import EmbeddingBatcher
        from omai_ray.engines.embedding.engine import EmbeddingEngine

        engine = EmbeddingEngine(spec)
        self._batcher = EmbeddingBatcher(engine, spec.max_queued_requests, spec.step_timeout_s)

    async def embed(self, inputs: list[list[int]], account: str) -> npt.NDArray[np.float32]:
        """Return float32 [N, D] for N inputs of token ids."""
        return await self._batcher.embed(inputs, account)

    async def ready(self) -> None:
        """Raise where the engine can no longer answer."""
        self._batcher.check_health()


def engine_backend(spec: ModelSpec) -> Any:
    """Return a backend with an engine of its own, on the CPUs or GPUs that the entry reserves."""
    from omai_ray.engines.device import limit_threads

    limit_threads(max(1.0, spec.num_cpus))
    return EngineChatBackend(spec) if spec.task == "chat" else EngineEmbeddingBackend(spec)
