"""One replica of a chat model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from deployments.metrics import export, sample_chat
from deployments.traces import GenerationSpans
from omai_ray.autoscaling.load import ReplicaMeter, Work
from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.text import ChatDelta, ChatGenerator, ChatJob
from omai_ray.garbage import start_uncollected
from omai_ray.telemetry.logs import configure_logs, request_id_var
from omai_ray.telemetry.metrics import QUEUE_TIME
from omai_ray.telemetry.recorder import Recorder
from omai_ray.text.tokenizer import TextTokenizer

# How long an answer is kept for those who did not get it: longer than they ask for it.
KEPT_S = 10.0


class _Answer:
    """A whole answer that is being generated, or was a moment ago."""

    def __init__(
        self, choices: list[ChatDelta], generating: asyncio.Task[None], work: Work
    ) -> None:
        self.choices = choices
        self.generating = generating
        self._work = work

    def count(self) -> None:
        """Count what it has gained since the last time."""
        gained = sum(choice.tokens for choice in self.choices) - self._work.answered_tokens
        if gained:
            self._work.answer(gained, max(choice.cached_tokens for choice in self.choices))


class ChatReplica:
    """Owns one engine and the text layer above it."""

    async def __init__(  # type: ignore[misc] # Serve awaits it; then the replica is ready
        self, spec: ModelSpec, log_level: str, log_file: str | None
    ) -> None:
        configure_logs(log_level, log_file)
        self._answers: dict[str, _Answer] = {}
        with start_uncollected():
            from omai_ray.engines.chat.create import create_engine
            from omai_ray.engines.device import limit_threads

            limit_threads(spec.num_cpus)
            self._engine = create_engine(spec)
            self._engine.start()
            self._generator = ChatGenerator(self._engine, TextTokenizer(locate(spec)))
            await self._warm_up()
        self._meter = ReplicaMeter(spec.full_requests)
        self._model = spec.name
        self._recorder = Recorder()
        export(self._recorder, self._sample)

    async def _warm_up(self) -> None:
        """Answer one token, so that no request pays for what is done at first use."""
        async for _ in self._generator.stream(ChatJob("warm-up", [0], max_new_tokens=1)):
            pass

    async def stream(self, job: ChatJob, request_id: str | None) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gain; a caller that goes away cancels them.

        request_id: of the HTTP request, for the log.
        """
        with self._observed(job, request_id) as (work, spans):
            async for deltas in self._generator.stream(job):
                tokens = sum(delta.tokens for delta in deltas)
                work.answer(tokens, max(delta.cached_tokens for delta in deltas))
                self._observe(job, deltas, spans)
                yield deltas

    async def answer(self, job: ChatJob, request_id: str | None) -> list[ChatDelta]:
        """Return the complete choices; a caller that goes away ends them."""
        choices = [ChatDelta(index) for index in range(job.n)]
        with self._observed(job, request_id) as (work, spans):
            generating = asyncio.create_task(self._generator.answer(job, choices))
            answer = _Answer(choices, generating, work)
            self._answers[job.request_id] = answer
            try:
                await generating
            finally:
                answer.count()
                self._observe(job, choices, spans)
                loop = asyncio.get_running_loop()
                loop.call_later(KEPT_S, self._answers.pop, job.request_id, None)
        return choices

    async def so_far(self, request_id: str, *, end: bool) -> list[ChatDelta] | None:
        """Return what an answer has gained, None where it is none of this replica's.

        end: end it first. What nobody received is known for KEPT_S.
        """
        answer = self._answers.get(request_id)
        if answer is None:
            return None
        if end:
            answer.generating.cancel()
            await asyncio.wait({answer.generating})
        return answer.choices

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the load that Serve's controller shows the policy."""
        for answer in self._answers.values():
            answer.count()
        return asdict(self._meter.load(time.time()))

    @contextmanager
    def _observed(
        self, job: ChatJob, request_id: str | None
    ) -> Iterator[tuple[Work, GenerationSpans]]:
        """Have log lines, load and traces know of a job for as long as it is here."""
        request_id_var.set(request_id)
        spans = GenerationSpans(self._model, job)
        try:
            prompt_tokens = len(job.prompt_ids)
            with self._meter.request(prompt_tokens, job.n, priority=job.priority) as work:
                yield work, spans
        finally:
            spans.end()

    def _observe(self, job: ChatJob, deltas: list[ChatDelta], spans: GenerationSpans) -> None:
        for delta in deltas:
            if delta.queued_s is not None and job.priority == "online":
                self._recorder.observe(QUEUE_TIME, delta.queued_s, self._model)
        spans.gained(deltas)

    def _sample(self) -> None:
        sample_chat(self._recorder, self._model, self._engine.stats())

    async def ready(self) -> None:
        """Return: being called is being ready."""
        self._engine.check_health()

    async def check_health(self) -> None:
        """Raise where the engine can no longer answer, so that Serve replaces the replica."""
        self._engine.check_health()
