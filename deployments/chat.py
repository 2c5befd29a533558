"""One replica of a chat model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import asdict

from omai_ray.autoscaling.load import LoadMeter
from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.text import ChatDelta, ChatGenerator, ChatJob
from omai_ray.telemetry.logs import configure_logs
from omai_ray.text.tokenizer import TextTokenizer


class ChatReplica:
    """Owns one engine and the text layer above it."""

    def __init__(self, spec: ModelSpec, log_level: str, log_file: str | None) -> None:
        from omai_ray.engines.chat.create import create_engine
        from omai_ray.engines.device import limit_threads

        configure_logs(log_level, log_file)
        limit_threads(spec.num_cpus)
        self._engine = create_engine(spec)
        self._engine.start()
        self._generator = ChatGenerator(self._engine, TextTokenizer(locate(spec)))
        self._meter = LoadMeter(spec.full_requests)

    async def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gain; a caller that goes away cancels them."""
        with self._meter.request(len(job.prompt_ids), job.n) as work:
            async for deltas in self._generator.stream(job):
                tokens = sum(delta.tokens for delta in deltas)
                work.answer(tokens, max(delta.cached_tokens for delta in deltas))
                yield deltas

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the load that Serve's controller shows the policy."""
        return asdict(self._meter.load(time.time()))

    async def ready(self) -> None:
        """Return: being called is being ready."""
        self._engine.check_health()

    async def check_health(self) -> None:
        """Raise where the engine can no longer answer, so that Serve replaces the replica."""
        self._engine.check_health()
