"""What becomes of a request whose replica goes away; no cluster is needed for that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from deployments.backends import HandleChatBackend, HandleEmbeddingBackend
from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.errors import ServerError
from omai_ray.priority import PRIORITIES

JOB = ChatJob("r", [1, 2], 4)
FIRST, SECOND = [ChatDelta(0, "a", tokens=1)], [ChatDelta(0, "b", tokens=1)]
GONE = ActorUnavailableError("gone", None)


class Answer:
    """What a replica gives, in turn; an exception is raised."""

    def __init__(self, *given: Any) -> None:
        self._given = list(given)
        self.cancelled = False

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Any:
        if not self._given:
            raise StopAsyncIteration
        given = self._given.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    def __await__(self) -> Any:
        return self.__anext__().__await__()

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True


class Handle:
    """A handle whose calls get these answers, each its own."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.called = 0
        self.given: tuple[Any, ...] = ()
        self.embed = self

    def options(self, **_: Any) -> Handle:
        """Return itself."""
        return self

    def remote(self, *given: Any) -> Answer:
        """Return the next answer."""
        self.called += 1
        self.given = given
        return self.answers[self.called - 1]


async def collect(handle: Handle) -> list[list[ChatDelta]]:
    """Return all that a backend yields."""
    backend = HandleChatBackend(handle)  # type: ignore[arg-type]
    return [deltas async for deltas in backend.stream(JOB)]


@pytest.mark.parametrize("gone", [ActorDiedError(), GONE])
async def test_a_job_that_got_no_token_is_tried_at_another(gone: Exception) -> None:
    """What it yields is of the second alone."""
    handle = Handle(Answer(gone), Answer(FIRST, SECOND))
    assert await collect(handle) == [FIRST, SECOND]
    assert handle.answers[0].cancelled


async def test_a_job_is_tried_twice_at_most() -> None:
    """One that ends its replicas must not end them all."""
    handle = Handle(Answer(GONE), Answer(GONE), Answer(FIRST))
    with pytest.raises(ServerError, match="went away"):
        await collect(handle)
    assert handle.called == 2


async def test_a_job_that_got_a_token_is_not_tried_again() -> None:
    """Its client has read it, and it would be counted twice."""
    handle = Handle(Answer(FIRST, GONE), Answer(FIRST))
    backend = HandleChatBackend(handle)  # type: ignore[arg-type]
    stream = backend.stream(JOB)
    assert await anext(stream) == FIRST
    with pytest.raises(ServerError, match="went away"):
        await anext(stream)
    assert handle.called == 1


async def test_what_a_replica_says_itself_is_no_reason_to_try_again() -> None:
    """Another would say the same."""
    handle = Handle(Answer(ServerError("no")), Answer(FIRST))
    with pytest.raises(ServerError, match="no"):
        await collect(handle)
    assert handle.called == 1


async def test_embeddings_are_tried_at_another() -> None:
    """Once, too."""
    vectors = np.ones((1, 2), np.float32)
    backend = HandleEmbeddingBackend(Handle(Answer(GONE), Answer(vectors)))  # type: ignore[arg-type]
    assert await backend.embed([[1]], "account") is vectors
    backend = HandleEmbeddingBackend(Handle(Answer(GONE), Answer(GONE)))  # type: ignore[arg-type]
    with pytest.raises(ServerError, match="went away"):
        await backend.embed([[1]], "account")


async def test_a_whole_answer_is_tried_at_another() -> None:
    """Of the first nothing came, so nothing of it counts; once, too."""
    choice = ChatDelta(0)
    handle = Handle(Answer(GONE), Answer(SECOND))
    await HandleChatBackend(handle).answer(JOB, [choice])  # type: ignore[arg-type]
    assert (choice.text, choice.tokens) == ("b", 1)
    handle = Handle(Answer(GONE), Answer(GONE), Answer(SECOND))
    with pytest.raises(ServerError, match="went away"):
        await HandleChatBackend(handle).answer(JOB, [choice])  # type: ignore[arg-type]
    assert handle.called == 2


async def test_a_backend_for_batches_says_so_to_replicas() -> None:
    """Of jobs and of inputs; the others are online."""
    for priority in PRIORITIES:
        handle = Handle(Answer(SECOND), Answer(np.ones((1, 2), np.float32)))
        await HandleChatBackend(handle, priority).answer(JOB, [ChatDelta(0)])  # type: ignore[arg-type]
        assert handle.given[0].priority == priority
        await HandleEmbeddingBackend(handle, priority).embed([[1]], "account")  # type: ignore[arg-type]
        assert handle.given[-1] == priority
