"""A whole answer's call: what is kept where it is cancelled, and how long it is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from deployments import backends
from deployments.backends import HandleChatBackend
from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.errors import Overloaded, ServerError

JOB = ChatJob("use_1", [5, 9], 100)
UNAVAILABLE = ActorUnavailableError("gone", b"0" * 16)
NO_REPLICA = DeploymentUnavailableError(DeploymentID("model"))


class Call:
    """A response that a test gives."""

    def __init__(self) -> None:
        self.future: asyncio.Future[list[ChatDelta]] = asyncio.Future()

    def __await__(self) -> Generator[Any, None, list[ChatDelta]]:
        return self.future.__await__()

    def cancel(self) -> None:
        self.future.cancel()


class Handle:
    """A deployment whose replicas say of an answer what a test has them say, in turns."""

    def __init__(self, *says: list[Any]) -> None:
        self.call = Call()
        self.called = asyncio.Event()
        self.asked: list[bool] = []
        self.asking = asyncio.Event()
        self.may_say = asyncio.Event()
        self.may_say.set()
        self._says = list(says)
        self.on_asked: Callable[[], None] = lambda: None

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, job: ChatJob, request_id: str | None) -> Call:
        assert (job, request_id) == (JOB, None)
        self.called.set()
        return self.call

    def broadcast(self, method: str, request_id: str, *, end: bool) -> Handle:
        assert (method, request_id) == ("so_far", JOB.request_id)
        self.asked.append(end)
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert return_exceptions
        self.asking.set()
        await self.may_say.wait()
        self.on_asked()
        return self._says.pop(0)


def some(tokens: int) -> list[ChatDelta]:
    """Return an answer so far."""
    return [ChatDelta(0, "x" * tokens, tokens=tokens)]


def answering(handle: Handle) -> tuple[asyncio.Task[None], ChatDelta]:
    """Start an answer; return it and its only choice."""
    choice = ChatDelta(0)
    backend = HandleChatBackend(handle)  # type: ignore[arg-type]
    return asyncio.create_task(backend.answer(JOB, [choice])), choice


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once."""
    monkeypatch.setattr(backends, "_ASK_AGAIN_S", 0)


async def test_a_whole_answer_is_one_call() -> None:
    """Nobody is asked for anything else."""
    handle = Handle()
    task, choice = answering(handle)
    handle.call.future.set_result(some(7))
    await task
    assert (choice.text, choice.tokens) == ("x" * 7, 7)
    assert handle.asked == []


async def test_what_a_cancelled_answer_had_is_asked_for_until_it_is_known() -> None:
    """Of all replicas; from one that does not say, again. A second cancellation ends nothing."""
    handle = Handle([None, UNAVAILABLE], [asyncio.CancelledError(), None], [None, some(7)])
    handle.may_say.clear()
    task, choice = answering(handle)
    await handle.called.wait()
    await asyncio.sleep(0)
    task.cancel()
    await handle.asking.wait()
    assert handle.call.future.cancelled()
    task.cancel()
    await asyncio.sleep(0)
    handle.may_say.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert choice.tokens == 7
    assert handle.asked == [True, True, True]


@pytest.mark.parametrize("said", [[None, None], [NO_REPLICA]])
async def test_an_answer_that_no_replica_has_is_asked_for_once(said: list[Any]) -> None:
    """It had not begun: those who leave a queue must not keep the replicas busy."""
    handle = Handle(said)
    task, choice = answering(handle)
    await handle.called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert choice.tokens == 0
    assert handle.asked == [True]


async def test_an_answer_is_waited_for_while_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes in all."""
    monkeypatch.setitem(backends.PATIENCE_S, "online", 0.001)
    handle = Handle([some(1)], [None, some(2)], [some(3)])

    def done_at_the_third() -> None:
        if len(handle.asked) == 3:
            handle.call.future.set_result(some(4))

    handle.on_asked = done_at_the_third
    task, choice = answering(handle)
    await task
    assert choice.tokens == 4
    assert handle.asked == [False, False, False]


async def test_an_answer_that_grows_no_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what there is of it, and the error that a silent stream ends with."""
    monkeypatch.setitem(backends.PATIENCE_S, "online", 0.001)
    handle = Handle([some(3)], [some(3)], [some(3)])
    task, choice = answering(handle)
    with pytest.raises(Overloaded, match="did not answer"):
        await task
    assert handle.call.future.cancelled()
    assert choice.tokens == 3
    assert handle.asked == [False, False, True]


async def test_a_replica_that_dies_is_a_server_error() -> None:
    """As it is in a stream, once it has been tried at another; that one may answer."""
    handle = Handle()
    handle.call.future.set_exception(RayActorError())
    task, _ = answering(handle)
    with pytest.raises(ServerError, match="went away"):
        await task
