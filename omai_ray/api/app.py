"""The ASGI application, put together.

From the outside in: pacing of uploads, context (ids, headers, the log), cross-origin rules,
failures, limits, identity, methods, routes.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from omai_ray.api import openapi
from omai_ray.api.account import AccountRoutes, add_account_routes
from omai_ray.api.accounting import Accountant
from omai_ray.api.administration import AdminRoutes, add_admin_routes
from omai_ray.api.auth import AuthRoutes, CookieJar
from omai_ray.api.backends import ServedModels
from omai_ray.api.batches import BatchRoutes, add_batch_routes
from omai_ray.api.context import CLIENT_CLOSED_REQUEST, ContextMiddleware
from omai_ray.api.embedding_jobs import JobRoutes, add_job_routes
from omai_ray.api.endpoints import endpoints_of
from omai_ray.api.failures import FailureMiddleware, internal_error, render_error, unknown_url
from omai_ray.api.files import FileRoutes, add_file_routes
from omai_ray.api.health import HealthRoutes
from omai_ray.api.measures import Measures
from omai_ray.api.methods import MethodsMiddleware, allowed_methods
from omai_ray.api.models import ModelRoutes
from omai_ray.api.pacing import PacingMiddleware
from omai_ray.api.relevance import RelevanceRoutes
from omai_ray.api.render import JsonBytes
from omai_ray.api.request_limits import RequestLimits, RequestLimitsMiddleware
from omai_ray.api.schemas.chat import ChatRequest, ChatResponse
from omai_ray.api.schemas.common import (
    Credentials,
    LoggedOut,
    LoginSession,
    ModelCard,
    ModelList,
)
from omai_ray.api.schemas.completions import CompletionRequest, CompletionResponse
from omai_ray.api.schemas.embeddings import EmbeddingRequest, EmbeddingResponse
from omai_ray.api.schemas.relevance import (
    RerankRequest,
    RerankResponse,
    ScoreRequest,
    ScoreResponse,
)
from omai_ray.api.schemas.responses import ResponseObject, ResponseRequest
from omai_ray.api.schemas.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from omai_ray.api.tokens import TokenRoutes
from omai_ray.batches.batches import Batches
from omai_ray.embedding_jobs.jobs import EmbeddingJobs
from omai_ray.errors import InvalidRequest, MethodNotAllowed, OMAiError, PermissionDenied
from omai_ray.files import Files
from omai_ray.identity.administration import Administration
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.middleware import IdentityMiddleware
from omai_ray.ledger.ledger import UsageLedger
from omai_ray.quota.gate import Gate
from omai_ray.settings import FORM_BYTES, FileSettings, IngressSettings, SessionSettings, Tier
from omai_ray.telemetry.recorder import Recorder

_STATIC_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
PUBLIC_PATHS = frozenset(
    {*openapi.PUBLIC, "/", "/openapi.json", "/docs"}
    | {f"/docs/static/{name}" for name in _STATIC_FILES}
)
# What a page of another origin may read.
_EXPOSED = (
    "x-request-id",
    "openai-processing-ms",
    *(f"x-ratelimit-{kind}-{unit}" for kind in openapi.RATE_KINDS for unit in openapi.RATE_UNITS),
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
)


@dataclass(frozen=True)
class Services:
    """What the application is built from; tests put their own in."""

    models: ServedModels
    gate: Gate
    ledger: UsageLedger
    authenticator: Authenticator
    administration: Administration
    tiers: Mapping[str, Tier]
    sessions: SessionSettings
    files: Files
    batches: Batches
    embedding_jobs: EmbeddingJobs
    file_limits: FileSettings
    ingress: IngressSettings
    trusted_proxies: tuple[str, ...]
    proxy_echoes_id: bool
    recorder: Recorder
    close: Callable[[], Awaitable[None]]


class _Route(APIRoute):
    """Calls its endpoint as it is: all take the request and return the response."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint."""
        return self.endpoint


def create_app(services: Services) -> ASGIApp:
    """Return the application over these services; it closes them at shutdown."""
    app = FastAPI(
        title="OMAi API",
        version="1.0.0",
        lifespan=_lifespan(services),
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = _Route
    _add_error_handlers(app)
    _add_inference(app, services)
    add_batch_routes(app, BatchRoutes(services.batches))
    add_job_routes(app, JobRoutes(services.embedding_jobs, services.models))
    add_file_routes(app, FileRoutes(services.files, services.tiers, services.file_limits))
    _add_accounts(app, services)
    _add_operations(app, services)
    guarded = IdentityMiddleware(
        MethodsMiddleware(app, app.routes),
        services.authenticator,
        PUBLIC_PATHS,
        services.trusted_proxies,
        services.sessions.origins,
    )
    limits = RequestLimits(
        services.ingress.max_body_bytes, services.file_limits.max_bytes + FORM_BYTES
    )
    limited = RequestLimitsMiddleware(guarded, limits)
    answered = _share(
        FailureMiddleware(limited), services.ingress.cors_origins, services.sessions.origins
    )
    return PacingMiddleware(
        ContextMiddleware(answered, services.recorder, proxy_echoes_id=services.proxy_echoes_id)
    )


class _Cors(CORSMiddleware):
    """Starlette's, whose refusals are in the envelope."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the answer to a browser's question."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        return render_error(
            PermissionDenied("Pages of this origin may not send such a request: see cors_origins.")
        )


def _share(app: ASGIApp, origins: tuple[str, ...], trusted: tuple[str, ...]) -> ASGIApp:
    """Let pages of these origins call the API; with sessions where all of them are trusted."""
    if not origins:
        return app
    return _Cors(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        allow_headers=("*",),
        allow_credentials=set(origins) <= set(trusted),
        expose_headers=_EXPOSED,
        max_age=3600,
    )


def _lifespan(services: Services) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await services.close()

    return lifespan


def _add_inference(app: FastAPI, services: Services) -> None:
    models = services.models
    accountant = Accountant(services.gate, services.ledger, Measures(services.recorder))
    endpoints = endpoints_of(models, accountant, services.ingress.keep_alive_s)
    relevance, tokens = RelevanceRoutes(models, accountant), TokenRoutes(models, accountant)
    add = partial(openapi.add_inference, app)
    add("/v1/chat/completions", endpoints["/v1/chat/completions"], ChatRequest, ChatResponse,
        "Create a chat completion", "Chat", stream=True)  # fmt: skip
    add("/v1/responses", endpoints["/v1/responses"], ResponseRequest, ResponseObject,
        "Create a response", "Chat", stream=True)  # fmt: skip
    add("/v1/completions", endpoints["/v1/completions"], CompletionRequest,
        CompletionResponse, "Continue a text", "Chat", stream=True)  # fmt: skip
    add("/v1/embeddings", endpoints["/v1/embeddings"], EmbeddingRequest,
        EmbeddingResponse, "Create embeddings", "Embeddings")  # fmt: skip
    add("/v1/rerank", relevance.rerank, RerankRequest, RerankResponse,
        "Rank documents by a query", "Embeddings")  # fmt: skip
    add("/v1/score", relevance.score, ScoreRequest, ScoreResponse,
        "Score pairs of texts", "Embeddings")  # fmt: skip
    add("/tokenize", tokens.tokenize, TokenizeRequest, TokenizeResponse,
        "List the tokens of a text", "Tokens")  # fmt: skip
    add("/detokenize", tokens.detokenize, DetokenizeRequest, DetokenizeResponse,
        "Write tokens as text", "Tokens")  # fmt: skip
    _add_models(app, ModelRoutes(models))


def _add_models(app: FastAPI, models: ModelRoutes) -> None:
    app.add_api_route(
        "/v1/models",
        models.list,
        summary="List models",
        tags=["Models"],
        response_model=None,
        responses=openapi.responses(ModelList),
    )
    app.add_api_route(
        "/v1/models/{model:path}",
        models.retrieve,
        summary="Retrieve a model",
        tags=["Models"],
        response_model=None,
        responses=openapi.responses(ModelCard),
        openapi_extra=openapi.path_parameter("model"),
    )


def _add_accounts(app: FastAPI, services: Services) -> None:
    cookies = CookieJar(services.sessions, services.trusted_proxies)
    auth = AuthRoutes(services.authenticator, services.sessions, services.trusted_proxies, cookies)
    add = partial(openapi.add_route, app, "POST", tag="Sessions")
    add("/v1/auth/login", auth.login, LoginSession, summary="Open a session",
        body=Credentials, body_required=False)  # fmt: skip
    add("/v1/auth/logout", auth.logout, LoggedOut, summary="Close the session")
    account = AccountRoutes(
        services.administration,
        services.authenticator,
        services.ledger,
        services.tiers,
        cookies,
        time.time,
    )
    add_account_routes(app, account)
    admin = AdminRoutes(services.administration, services.authenticator, services.ledger)
    add_admin_routes(app, admin)


def _add_operations(app: FastAPI, services: Services) -> None:
    health = HealthRoutes(services.models)
    app.add_api_route(
        "/healthz",
        health.live,
        summary="Whether this process serves",
        tags=["Operations"],
        response_model=None,
        responses=openapi.health(can_wait=False),
    )
    app.add_api_route(
        "/readyz",
        health.ready,
        summary="Whether the models can answer",
        tags=["Operations"],
        response_model=None,
        responses=openapi.health(can_wait=True),
    )

    async def schema(_: Request) -> Response:
        return JsonBytes(openapi.document(app))

    async def to_docs(_: Request) -> Response:
        return RedirectResponse("/docs")

    async def docs(_: Request) -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="OMAi API",
            swagger_js_url="/docs/static/swagger-ui-bundle.js",
            swagger_css_url="/docs/static/swagger-ui.css",
            swagger_favicon_url="/docs/static/favicon.png",
        )

    app.add_api_route("/openapi.json", schema, include_in_schema=False, response_model=None)
    app.add_api_route("/", to_docs, include_in_schema=False, response_model=None)
    app.add_api_route("/docs", docs, include_in_schema=False, response_model=None)
    app.mount("/docs/static", StaticFiles(directory=_static_directory()))


def _static_directory() -> Path:
    """Return where Swagger UI's files are, so that the page needs no network."""
    found = importlib.util.find_spec("fastapi_offline")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("fastapi_offline")
    return Path(found.origin).parent / "static"


def _add_error_handlers(app: FastAPI) -> None:
    async def domain(_: Request, error: Exception) -> Response:
        return render_error(error if isinstance(error, OMAiError) else internal_error())

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return render_error(internal_error())
        return render_error(_of_http(app, request, error))

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(OMAiError, domain)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, domain)


def _of_http(app: FastAPI, request: Request, error: HTTPException) -> OMAiError:
    """Return our error for one that routing raised."""
    if error.status_code == 405:
        path, method = request.scope["path"][:200], request.method
        return MethodNotAllowed(
            f"Not allowed to {method} on {path}. (HINT: Perhaps you meant to use a different HTTP "
            "method?)",
            headers={"Allow": ", ".join(allowed_methods(app.routes, request.scope))},
        )
    if error.status_code == 404:
        return unknown_url(request.scope)
    return InvalidRequest("The request could not be read.")
