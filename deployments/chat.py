"""One replica of a chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator

from deployments.metrics import export, sample_chat
from deployments.traces import GenerationSpans
from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.text import ChatDelta, ChatGenerator, ChatJob
from omai_ray.telemetry.logs import configure_logs, request_id_var
from omai_ray.telemetry.metrics import QUEUE_TIME
from omai_ray.telemetry.recorder import Recorder
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
        self._model = spec.name
        self._recorder = Recorder()
        export(self._recorder, self._sample)

    async def stream(self, job: ChatJob, request_id: str | None) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gain; a caller that goes away cancels them.

        request_id: of the HTTP request, for the log.
        """
        request_id_var.set(request_id)
        spans = GenerationSpans(self._model, job)
        try:
            async for deltas in self._generator.stream(job):
                for delta in deltas:
                    if delta.queued_s is not None:
                        self._recorder.observe(QUEUE_TIME, delta.queued_s, self._model)
                spans.gained(deltas)
                yield deltas
        finally:
            spans.end()

    def _sample(self) -> None:
        sample_chat(self._recorder, self._model, self._engine.stats())

    async def ready(self) -> None:
        """Return: being called is being ready."""
        self._engine.check_health()

    async def check_health(self) -> None:
        """Raise where the engine can no longer answer, so that Serve replaces the replica."""
        self._engine.check_health()
