from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from omai_ray.api.health import HealthRoutes
from omai_ray.catalog import ModelSpec
from omai_ray.errors import Overloaded, ServerError

Ready = Callable[[], Coroutine[Any, Any, None]]


async def answer() -> None:
    """Be ready."""


async def hang() -> None:
    """Never say so."""
    await asyncio.Event().wait()


async def refuse() -> None:
    """Have a full queue."""
    raise Overloaded("busy")


async def fail() -> None:
    """Have a dead engine."""
    raise ServerError("dead")


class Model:
    """A model whose readiness a test decides."""

    def __init__(self, ready: Ready) -> None:
        self.spec = ModelSpec(name="m", task="chat", source="unused")
        self.backend = SimpleNamespace(ready=ready)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at once on a model that hangs."""
    monkeypatch.setattr("omai_ray.api.health._READY_S", 0.01)


async def status(routes: HealthRoutes) -> tuple[int, Any]:
    """Return what a load balancer gets."""
    response = await routes.ready(Request({"type": "http", "headers": []}))
    return response.status_code, json.loads(bytes(response.body))


def routes_of(*models: Model) -> HealthRoutes:
    """Return the routes of these models."""
    return HealthRoutes(SimpleNamespace(all=lambda: list(models)))  # type: ignore[arg-type]


@pytest.mark.parametrize("ready", [hang, refuse, fail])
async def test_a_model_that_never_answered_is_loading(ready: Ready) -> None:
    """Whatever keeps it from it; and a model that hangs is not waited for."""
    assert await status(routes_of(Model(ready))) == (503, {"status": "loading", "models": ["m"]})


@pytest.mark.parametrize(("ready", "expected"), [(hang, 200), (refuse, 200), (fail, 503)])
async def test_a_busy_model_that_was_ready_still_is(ready: Ready, expected: int) -> None:
    """Saturation does not take an ingress out of its load balancer; a failure does."""
    model = Model(answer)
    routes = routes_of(model)
    assert (await status(routes))[0] == 200
    model.backend.ready = ready
    assert (await status(routes))[0] == expected
