"""GET /v1/models: what the caller may use."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.backends import ServedChat, ServedEmbedding, ServedModels
from omai_ray.api.render import JsonBytes


class ModelRoutes:
    """Lists the served models."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/models: each model, then each alias under its own name."""
        served = [_card(model.spec.name, model) for model in self._models.all()]
        aliases = [_card(alias, self._models.any(alias)) for alias in self._models.catalog.aliases]
        return JsonBytes({"object": "list", "data": served + aliases})

    async def retrieve(self, request: Request) -> Response:
        """Answer GET /v1/models/{model}. Raises ModelNotFound."""
        name = request.path_params["model"]
        return JsonBytes(_card(name, self._models.any(name)))


def _card(name: str, served: ServedChat | ServedEmbedding) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": served.spec.owned_by,
    }
