"""The API's backends over Serve handles, Ray's failures turned into ours."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.errors import OMAiError, Overloaded, ServerError
from omai_ray.priority import Priority
from omai_ray.telemetry.logs import request_id_var

_log = logging.getLogger(__name__)
Result = TypeVar("Result")
# How long a replica may say nothing: beyond the longest queue, short of for ever. A batch's work
# may stand behind hours of traffic.
PATIENCE_S: dict[Priority, float] = {"online": 300.0, "batch": 3600.0}
# How long, and how often, replicas are asked for what they have of an answer.
_ASKED_S, _ASK_TIMEOUT_S, _ASK_AGAIN_S = 4.0, 2.0, 0.2
# What crosses is data; cloudpickle, the default, is for code, and takes thrice as long.
_PICKLE = "pickle"
_TRIED_AGAIN = "a model's replica went away before it answered; another is tried"


class HandleChatBackend:
    """Implements ChatBackend over a chat deployment. priority: of all its jobs."""

    def __init__(self, handle: DeploymentHandle[Any], priority: Priority = "online") -> None:
        self._priority = priority
        self._patience_s = PATIENCE_S[priority]
        data = handle.options(request_serialization=_PICKLE, response_serialization=_PICKLE)
        self._handle = data
        self._answering = data.options(method_name="answer")
        self._streaming = data.options(method_name="stream", stream=True)

    async def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gain; leaving early cancels the replica's generator.

        A job whose replica goes away before it gave a token is tried once more, at another. It
        counts once: what counts is what is yielded here.
        """
        job = dataclasses.replace(job, priority=self._priority)
        with domain_errors(self._patience_s):
            for retriable in (True, False):
                response: Any = self._streaming.remote(job, request_id_var.get())
                try:
                    while True:
                        async with asyncio.timeout(self._patience_s):
                            deltas: list[ChatDelta] = await anext(response)
                        retriable = False
                        yield deltas
                except StopAsyncIteration:
                    return
                except RayActorError:
                    if not retriable:
                        raise
                    _log.warning(_TRIED_AGAIN)
                finally:
                    response.cancel()

    async def answer(self, job: ChatJob, choices: list[ChatDelta]) -> None:
        """Complete the choices in one call; leaving early ends it, and keeps what there is.

        A job whose replica goes away is tried once more, at another: of the first nothing came.
        """
        job = dataclasses.replace(job, priority=self._priority)
        with domain_errors(self._patience_s):
            await _twice_at_most(lambda: self._answer(job, choices))

    async def _answer(self, job: ChatJob, choices: list[ChatDelta]) -> None:
        response: Any = self._answering.remote(job, request_id_var.get())
        call: asyncio.Future[list[ChatDelta]] = asyncio.ensure_future(response)
        try:
            gained = await self._patiently(call, job)
        except (asyncio.CancelledError, TimeoutError):
            response.cancel()
            call.cancel()
            asking = asyncio.create_task(self._ended(call, job))
            while not asking.done():  # Serve may cancel a request more than once
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.shield(asking)
            _absorb(choices, asking.result())
            raise
        _absorb(choices, gained)

    async def _patiently(
        self, call: asyncio.Future[list[ChatDelta]], job: ChatJob
    ) -> list[ChatDelta]:
        """Wait for as long as the answer grows within its patience."""
        tokens = 0
        while True:
            done, _ = await asyncio.wait({call}, timeout=self._patience_s)
            if done:
                return call.result()
            before, tokens = tokens, sum(c.tokens for c in await self._so_far(job, end=False))
            if tokens <= before:
                raise TimeoutError

    async def _ended(self, call: asyncio.Future[list[ChatDelta]], job: ChatJob) -> list[ChatDelta]:
        """End a cancelled call; return what its answer had."""
        await asyncio.gather(call, return_exceptions=True)
        return await self._so_far(job, end=True)

    async def _so_far(self, job: ChatJob, *, end: bool) -> list[ChatDelta]:
        """Return what the replica that has the job has of its answer, [] where none has it.

        A call that was cancelled brings nothing back, so it is asked for: of every replica, as
        Serve does not say which one it is.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _ASKED_S
        while True:
            try:
                asked = self._handle.broadcast("so_far", job.request_id, end=end)
                said = await asked.results_async(timeout_s=_ASK_TIMEOUT_S, return_exceptions=True)
            except (RayError, RayServeException, TimeoutError) as error:
                said = [error]
            failures = [what for what in said if isinstance(what, BaseException)]
            found = [what for what in said if isinstance(what, list)]
            if found:
                return found[0]
            if not failures or isinstance(failures[0], DeploymentUnavailableError):
                return []
            if loop.time() > deadline_s:
                _log.warning("what an answer had is unknown: %s", type(failures[0]).__name__)
                return []
            await asyncio.sleep(_ASK_AGAIN_S)

    async def ready(self) -> None:
        """Return once a replica answers."""
        with domain_errors(self._patience_s):
            await self._handle.ready.remote()


class HandleEmbeddingBackend:
    """Implements EmbeddingBackend over an embedding deployment. priority: of all its inputs."""

    def __init__(self, handle: DeploymentHandle[Any], priority: Priority = "online") -> None:
        self._priority = priority
        self._patience_s = PATIENCE_S[priority]
        self._handle = handle.options(request_serialization=_PICKLE, response_serialization=_PICKLE)

    async def embed(self, inputs: list[list[int]], account: str) -> npt.NDArray[np.float32]:
        """Return float32 [N, D] for N inputs of token ids."""
        with domain_errors(self._patience_s):
            return await _twice_at_most(lambda: self._embed(inputs, account))

    async def _embed(self, inputs: list[list[int]], account: str) -> npt.NDArray[np.float32]:
        response: Any = self._handle.embed.remote(
            inputs, account, request_id_var.get(), self._priority
        )
        try:
            async with asyncio.timeout(self._patience_s):
                vectors: npt.NDArray[np.float32] = await response
        except (asyncio.CancelledError, TimeoutError):
            response.cancel()
            raise
        return vectors

    async def ready(self) -> None:
        """Return once a replica answers."""
        with domain_errors(self._patience_s):
            await self._handle.ready.remote()


async def _twice_at_most(call: Callable[[], Awaitable[Result]]) -> Result:
    """Return what a call gives; it is made once more where its replica goes away."""
    try:
        return await call()
    except RayActorError:
        _log.warning(_TRIED_AGAIN)
    return await call()


def _absorb(choices: list[ChatDelta], gained: list[ChatDelta]) -> None:
    for choice, delta in zip(choices, gained, strict=False):
        choice.absorb(delta)


@contextlib.contextmanager
def domain_errors(patience_s: float) -> Iterator[None]:
    """Raise the replica's own OMAiError, or ours for what Ray reports of a replica.

    patience_s: how long it was waited for, where it did not answer.
    """
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, OMAiError):
            raise cause from None
        raise
    except (BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
        _log.warning("a model refused a request: %s", type(error).__name__)
        raise Overloaded(
            "The model has too many requests waiting. Please try again later.",
        ) from None
    except TimeoutError:
        _log.error("a model did not answer within %s s", patience_s)
        raise Overloaded(
            f"The model did not answer within {patience_s:.0f} s. Please try again later.",
            headers={"Retry-After": "10"},
        ) from None
    except RayActorError as error:
        _log.error("a model's replica went away: %s", type(error).__name__)
        raise ServerError("The model's replica went away. Please try again.") from None
