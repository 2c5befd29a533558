"""The API's backends over Serve handles, Ray's failures turned into ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.errors import OMAiError, Overloaded, ServerError
from omai_ray.telemetry.logs import request_id_var

_log = logging.getLogger(__name__)
# How long a replica may say nothing: beyond the longest queue, short of for ever.
PATIENCE_S = 300.0
# What crosses is data; cloudpickle, the default, is for code, and takes thrice as long.
_PICKLE = "pickle"


class HandleChatBackend:
    """Implements ChatBackend over a chat deployment."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._streaming = handle.options(
            stream=True,
            method_name="stream",
            request_serialization=_PICKLE,
            response_serialization=_PICKLE,
        )

    async def stream(self, job: ChatJob) -> AsyncIterator[list[ChatDelta]]:
        """Yield what the choices gain; leaving early cancels the replica's generator."""
        with domain_errors():
            response: Any = self._streaming.remote(job, request_id_var.get())
            try:
                while True:
                    async with asyncio.timeout(PATIENCE_S):
                        deltas: list[ChatDelta] = await anext(response)
                    yield deltas
            except StopAsyncIteration:
                return
            finally:
                response.cancel()

    async def ready(self) -> None:
        """Return once a replica answers."""
        with domain_errors():
            await self._handle.ready.remote()


class HandleEmbeddingBackend:
    """Implements EmbeddingBackend over an embedding deployment."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle.options(request_serialization=_PICKLE, response_serialization=_PICKLE)

    async def embed(self, inputs: list[list[int]], account: str) -> npt.NDArray[np.float32]:
        """Return float32 [N, D] for N inputs of token ids."""
        with domain_errors():
            response: Any = self._handle.embed.remote(inputs, account, request_id_var.get())
            try:
                async with asyncio.timeout(PATIENCE_S):
                    vectors: npt.NDArray[np.float32] = await response
            except (asyncio.CancelledError, TimeoutError):
                response.cancel()
                raise
        return vectors

    async def ready(self) -> None:
        """Return once a replica answers."""
        with domain_errors():
            await self._handle.ready.remote()


@contextmanager
def domain_errors() -> Iterator[None]:
    """Raise the replica's own OMAiError, or ours for what Ray reports of a replica."""
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
        _log.error("a model did not answer within %s s", PATIENCE_S)
        raise Overloaded(
            f"The model did not answer within {PATIENCE_S:.0f} s. Please try again later.",
            headers={"Retry-After": "10"},
        ) from None
    except RayActorError as error:
        _log.error("a model's replica went away: %s", type(error).__name__)
        raise ServerError("The model's replica went away. Please try again.") from None
