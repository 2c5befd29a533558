"""One replica of a chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from omai_ray.catalog import ModelSpec, locate
from omai_ray.engines.chat.text import ChatDelta, ChatGenerator, ChatJob
from omai_ray.telemetry.logs import configure_logs
from omai_ray.text.tokenizer import TextTokenizer

# How long an answer is kept for those who did not get it: longer than they ask for it.
KEPT_S = 10.0


class _Answer(NamedTuple):
    choices: list[ChatDelta]
    generating: asyncio.Task[None]


class ChatReplica:
    """Owns one engine and the text layer above it."""

    async def __init__(  # type: ignore[misc] # Serve awaits it; then the replica is ready
        self, spec: ModelSpec, log_level: str, log_file: str | None
    ) -> None:
        from omai_ray.engines.chat.create import create_engine
        from omai_ray.engines.device import limit_threads

        configure_logs(log_level, log_file)
        limit_threads(spec.num_cpus)
        self._engine = create_engine(spec)
        self._engine.start()
        self._generator = ChatGenerator(self._engine, TextTokenizer(locate(spec)))
        self._answers: dict[str, _Answer] = {}
        await self._warm_up()

    async def _warm_up(self) -> None:
        """Answer one token, so that no request pays for what is done at first use."""
        async for _ in self._generator.stream(ChatJob("warm-up", [0], max_new_tokens=1)):
            pass

    async def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gain; a caller that goes away cancels them."""
        async for deltas in self._generator.stream(job):
            yield deltas

    async def answer(self, job: ChatJob) -> list[ChatDelta]:
        """Return the complete choices; a caller that goes away ends them."""
        choices = [ChatDelta(index) for index in range(job.n)]
        generating = asyncio.create_task(self._generator.answer(job, choices))
        self._answers[job.request_id] = _Answer(choices, generating)
        try:
            await generating
        finally:
            asyncio.get_running_loop().call_later(KEPT_S, self._answers.pop, job.request_id, None)
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

    async def ready(self) -> None:
        """Return: being called is being ready."""
        self._engine.check_health()

    async def check_health(self) -> None:
        """Raise where the engine can no longer answer, so that Serve replaces the replica."""
        self._engine.check_health()
