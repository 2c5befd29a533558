"""What benchmarks/gateway.py serves: our ingress, and a bare one, over the same stubs.

Annotations stay objects here: FastAPI could not look names up in a class that Ray has pickled.
"""

from collections.abc import AsyncIterator
from typing import Any

import gateway_upstream as stub
import numpy as np
import numpy.typing as npt
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from deployments.ingress import Ingress
from deployments.names import deployment_name
from deployments.routing import router_config
from omai_ray.engines.chat.text import ChatDelta, ChatJob
from omai_ray.priority import Priority
from omai_ray.settings import Settings

MANY = 1000


class StubChat:
    """Answers without a model: whole at once, or streamed in WORDS pieces.

    The bare application has methods of its own, which give it text alone.
    """

    async def stream(
        self, job: ChatJob, request_id: str | None = None
    ) -> AsyncIterator[list[ChatDelta]]:
        """Yield as a chat replica does."""
        for left in range(stub.WORDS - 1, -1, -1):
            yield [ChatDelta(0, stub.WORD, tokens=1, finish=None if left else "stop")]

    async def answer(self, job: ChatJob, request_id: str | None) -> list[ChatDelta]:
        """Return what a chat replica does."""
        return [ChatDelta(0, stub.ANSWER, tokens=9, finish="stop")]

    async def so_far(self, request_id: str, *, end: bool) -> None:
        """Return None: whole answers are given at once."""

    async def text(self, messages: list[Any]) -> str:
        """Return a whole answer."""
        return stub.ANSWER

    async def words(self, messages: list[Any]) -> AsyncIterator[str]:
        """Yield the pieces of a long answer."""
        for _ in range(stub.WORDS):
            yield stub.WORD

    async def ready(self) -> None:
        """Return."""


class StubEmbedding:
    """Embeds without a model."""

    def __init__(self) -> None:
        self._vector = np.asarray(stub.VECTOR, dtype=np.float32)

    async def embed(
        self,
        inputs: list[Any],
        account: str = "",
        request_id: str | None = None,
        priority: Priority = "online",
    ) -> npt.NDArray[np.float32]:
        """Return float32 [N, DIMENSIONS]."""
        return np.tile(self._vector, (len(inputs), 1))

    async def ready(self) -> None:
        """Return."""


_bare = FastAPI()


@serve.deployment
@serve.ingress(_bare)
class Bare:
    """JSON in and out over handles, and nothing else."""

    def __init__(self, chat: DeploymentHandle[Any], embedding: DeploymentHandle[Any]) -> None:
        self._chat = chat
        self._words = chat.options(stream=True, method_name="words")
        self._embedding = embedding

    @_bare.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """Answer whole or as a stream."""
        body = orjson.loads(await request.body())
        if body.get("stream"):
            return StreamingResponse(self._frames(body["messages"]), media_type="text/event-stream")
        text = await self._chat.text.remote(body["messages"])
        return Response(stub.completion(text), media_type="application/json")

    async def _frames(self, messages: list[Any]) -> AsyncIterator[bytes]:
        async for word in self._words.remote(messages):
            yield stub.chunk({"content": word})
        yield stub.DONE

    @_bare.post("/v1/embeddings")
    async def embed(self, request: Request) -> Response:
        """Answer with one vector."""
        body = orjson.loads(await request.body())
        vectors = await self._embedding.embed.remote([body["input"]])
        return Response(stub.embeddings(vectors[0]), media_type="application/json")


def stubs() -> tuple[Application, Application]:
    """Return a chat and an embedding deployment."""
    chat, embedding = (
        serve.deployment(cls).options(  # type: ignore[attr-defined]
            max_ongoing_requests=MANY, ray_actor_options={"num_cpus": 0.1}
        )
        for cls in (StubChat, StubEmbedding)
    )
    return chat.bind(), embedding.bind()


def ours(settings: Settings) -> Application:
    """Return our ingress over the stubs."""
    handles = {
        spec.name: serve.deployment(StubChat if spec.task == "chat" else StubEmbedding)  # type: ignore[attr-defined]
        .options(
            name=deployment_name(spec.name),
            max_ongoing_requests=MANY,
            ray_actor_options={"num_cpus": 0.1},
            request_router_config=router_config(spec, settings.ingress.replicas),
        )
        .bind()
        for spec in settings.models
    }
    ingress = serve.deployment(Ingress).options(  # type: ignore[attr-defined]
        name="ingress",
        num_replicas=settings.ingress.replicas,
        max_ongoing_requests=settings.ingress.max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
    )
    bound: Application = ingress.bind(settings, handles)
    return bound


def bare(settings: Settings) -> Application:
    """Return the bare ingress, with as many replicas, over stubs of its own."""
    bound: Application = Bare.options(
        num_replicas=settings.ingress.replicas,
        max_ongoing_requests=settings.ingress.max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
    ).bind(*stubs())
    return bound
