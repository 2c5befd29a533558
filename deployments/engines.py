"""The API's backends over an engine in this process, for batches with engines of their own."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from omai_ray.batches.answering import Answered, Answers, LineRequest
from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.text import ChatDelta, ChatGenerator, ChatJob
from omai_ray.text.tokenizer import TextTokenizer

HEALTH_S = 10.0
ENGINE_CALLS = 2
"""Of an embedding engine: one that it is at, and one that it goes on with."""

_log = logging.getLogger(__name__)


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
        """Return float32 [N, D] for N inputs of token ids; those of like length share a step."""
        order = sorted(range(len(inputs)), key=lambda row: len(inputs[row]))
        sorted_vectors = await self._batcher.embed([inputs[row] for row in order], account)
        vectors = np.empty_like(sorted_vectors)
        vectors[order] = sorted_vectors
        return vectors

    async def ready(self) -> None:
        """Raise where the engine can no longer answer."""
        self._batcher.check_health()


def _end_process() -> None:
    os._exit(1)


class HealthyAnswers:
    """Implements Answers over others, as long as the engine behind them can answer.

    Once it cannot, the process ends, for Ray to make another in its place: what the engine's
    failure has done to lines must not be kept as their answers. ready: raises where it cannot.
    """

    def __init__(
        self,
        answers: Answers,
        ready: Callable[[], Awaitable[None]],
        end: Callable[[], None] = _end_process,
    ) -> None:
        self._answers = answers
        self._ready = ready
        self._end = end

    async def answer(self, request: LineRequest) -> Answered:
        """Return the answer."""
        answered = await self._answers.answer(request)
        if answered.status >= 500:
            await self.check()
        return answered

    async def watch(self) -> None:
        """Look from time to time, for an engine that hangs; never ends."""
        while True:
            await asyncio.sleep(HEALTH_S)
            await self.check()

    async def check(self) -> None:
        """End the process where the engine has failed."""
        try:
            await self._ready()
        except Exception:
            _log.exception("the engine has failed: this worker ends")
            self._end()


def engine_backend(spec: ModelSpec) -> Any:
    """Return a backend with an engine of its own, on the CPUs or GPUs that the entry reserves."""
    from omai_ray.engines.device import limit_threads

    limit_threads(max(1.0, spec.num_cpus))
    return EngineChatBackend(spec) if spec.task == "chat" else EngineEmbeddingBackend(spec)
