"""Liveness and readiness, for load balancers and for whoever starts the platform."""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import Response

from omai_ray.api.backends import ServedModel, ServedModels
from omai_ray.api.render import JsonBytes
from omai_ray.errors import Overloaded

_READY_S = 2.0
_log = logging.getLogger(__name__)


class HealthRoutes:
    """Answers without credentials."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models
        self._were_ready: set[str] = set()

    async def live(self, request: Request) -> Response:
        """Answer GET /healthz: this process serves."""
        return JsonBytes({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Answer GET /readyz: every model that is kept loaded can answer, or 503 naming which not.

        A model that may scale to zero counts as ready, and is not woken. One that was ready and is
        now too busy to say so still is: a load balancer that left it would only move the load.
        """
        kept = [model for model in self._models.all() if model.spec.replicas.min > 0]
        results = await asyncio.gather(*(self._is_ready(model) for model in kept))
        waiting = [model.spec.name for model, ok in zip(kept, results, strict=True) if not ok]
        if waiting:
            return JsonBytes({"status": "loading", "models": waiting}, status_code=503)
        return JsonBytes({"status": "ready"})

    async def _is_ready(self, model: ServedModel) -> bool:
        try:
            await asyncio.wait_for(model.backend.ready(), _READY_S)
        except (TimeoutError, Overloaded):
            return model.spec.name in self._were_ready
        except Exception:
            _log.warning("%s is not ready", model.spec.name, exc_info=True)
            return False
        self._were_ready.add(model.spec.name)
        return True
