"""Requests from many callers, embedded together by one owned thread.

It starts at once when idle; what queued meanwhile forms the next batch, so nobody waits for a
timer. A batch is bounded in tokens.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from omai_ray.engines.embedding.engine import EmbeddingEngine, Vectors
from omai_ray.errors import OMAiError, Overloaded, ServerError

BATCH_TOKENS = 16_384
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Request:
    inputs: Sequence[Sequence[int]]
    tokens: int
    future: Future[Vectors] = field(default_factory=Future)


class EmbeddingBatcher:
    """Feeds one engine from many callers.

    max_queued: requests that may wait; one more is refused with Overloaded.
    """

    def __init__(self, engine: EmbeddingEngine, max_queued: int) -> None:
        self._engine = engine
        self._queue: queue.Queue[_Request] = queue.Queue(maxsize=max_queued)
        self._thread = threading.Thread(target=self._run, name="embedding-engine", daemon=True)
        self._thread.start()

    async def embed(self, inputs: Sequence[Sequence[int]]) -> Vectors:
        """Return float32 [N, D] for N inputs of token ids; errors as EmbeddingEngine.embed_ids.

        A caller that is cancelled while waiting is dropped from the queue.
        """
        request = _Request(inputs, sum(map(len, inputs)))
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            raise Overloaded(
                f"The model has {self._queue.maxsize} requests waiting. Please try again later.",
            ) from None
        return await asyncio.wrap_future(request.future)

    def check_health(self) -> None:
        """Raise ServerError where the thread has ended."""
        if not self._thread.is_alive():
            raise ServerError("the embedding engine's thread is not running")

    def _run(self) -> None:
        carried: _Request | None = None
        while True:
            batch, carried = self._next_batch(carried or self._queue.get())
            live = [r for r in batch if r.future.set_running_or_notify_cancel()]
            if live:
                self._embed(live)

    def _next_batch(self, first: _Request) -> tuple[list[_Request], _Request | None]:
        """Take what is queued, up to the token bound; the one that did not fit comes second."""
        batch, tokens = [first], first.tokens
        while True:
            try:
                request = self._queue.get_nowait()
            except queue.Empty:
                return batch, None
            if tokens + request.tokens > BATCH_TOKENS:
                return batch, request
            batch.append(request)
            tokens += request.tokens

    def _embed(self, batch: list[_Request]) -> None:
        """Answer every request; one that fails alone does not fail its neighbours."""
        try:
            vectors = self._engine.embed_ids([ids for r in batch for ids in r.inputs])
        except Exception as error:  # handed to the caller it belongs to
            self._embed_failed(batch, error)
            return
        starts = np.cumsum([len(r.inputs) for r in batch])[:-1]
        for request, part in zip(batch, np.split(vectors, starts), strict=True):
            request.future.set_result(part)

    def _embed_failed(self, batch: list[_Request], error: Exception) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            self._embed(batch[:middle])
            self._embed(batch[middle:])
        elif isinstance(error, OMAiError):
            batch[0].future.set_exception(error)
        else:
            _log.error("a batch could not be embedded", exc_info=error)
            batch[0].future.set_exception(
                ServerError("The model could not embed the input. Please try again.")
            )
