"""The endpoints that run a model in OpenAI's format, by path: those that a batch may name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import Accountant
from omai_ray.api.backends import ServedModels
from omai_ray.api.chat import ChatEndpoint
from omai_ray.api.completions import CompletionsEndpoint
from omai_ray.api.embeddings import EmbeddingsEndpoint
from omai_ray.api.generation import TextService
from omai_ray.api.responses import ResponsesEndpoint
from omai_ray.batches.lines import Endpoint

Handler = Callable[[Request], Awaitable[Response]]


def endpoints_of(
    models: ServedModels, accountant: Accountant, keep_alive_s: float
) -> dict[Endpoint, Handler]:
    """Return what answers a request, for each path."""
    text = TextService(accountant, keep_alive_s)
    return {
        "/v1/chat/completions": ChatEndpoint(models, text).create,
        "/v1/responses": ResponsesEndpoint(models, text).create,
        "/v1/completions": CompletionsEndpoint(models, text).create,
        "/v1/embeddings": EmbeddingsEndpoint(models, accountant).create,
    }
