"""GET /v1/models: what the caller may use."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.accounting import permitted, principal_of
from omai_ray.api.backends import ServedModel, ServedModels
from omai_ray.api.render import JsonBytes


class ModelRoutes:
    """Lists the served models."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    async def list(self, request: Request) -> Response:
        """Answer GET /v1/models: each model, then each alias under its own name."""
        may_use = principal_of(request).may_use
        names = [model.spec.name for model in self._models.all()]
        named = {name: self._models.any(name) for name in [*names, *self._models.catalog.aliases]}
        cards = [
            _card(name, model) for name, model in named.items() if may_use(name, model.spec.name)
        ]
        return JsonBytes({"object": "list", "data": cards})

    async def retrieve(self, request: Request) -> Response:
        """Answer GET /v1/models/{model}. Raises ModelNotFound, PermissionDenied."""
        name = request.path_params["model"]
        return JsonBytes(_card(name, permitted(request, name, self._models.any(name))))


def _card(name: str, served: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": served.spec.owned_by,
    }
