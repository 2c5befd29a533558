"""The server's own OpenAPI document: bodies, answers, errors and headers of each route."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from omai_ray.api.schemas import (
    administration,
    batches,
    chat,
    common,
    completions,
    embedding_jobs,
    embeddings,
    files,
    relevance,
    tokens,
)
from omai_ray.api.schemas import responses as response_schemas
from omai_ray.api.validation import read_query

DESCRIPTION = (
    "Chat and embedding models in the OpenAI wire format. Authenticate with an API key "
    "(`Authorization: Bearer omai-sk-…`) or with a session (`POST /v1/auth/login`)."
)
SCHEMAS: tuple[type[BaseModel], ...] = (
    chat.ChatRequest,
    chat.ChatResponse,
    completions.CompletionRequest,
    completions.CompletionResponse,
    embeddings.EmbeddingRequest,
    embeddings.EmbeddingResponse,
    batches.BatchList,
    batches.BatchObject,
    batches.CreateBatch,
    embedding_jobs.CreateEmbeddingJob,
    embedding_jobs.EmbeddingJobList,
    embedding_jobs.EmbeddingJobObject,
    files.CreateFile,
    files.FileDeleted,
    files.FileList,
    files.FileObject,
    relevance.RerankRequest,
    relevance.RerankResponse,
    relevance.ScoreRequest,
    relevance.ScoreResponse,
    response_schemas.ResponseObject,
    response_schemas.ResponseRequest,
    tokens.DetokenizeRequest,
    tokens.DetokenizeResponse,
    tokens.TokenizeRequest,
    tokens.TokenizeResponse,
    common.ErrorEnvelope,
    common.Credentials,
    common.Health,
    common.LoggedOut,
    common.LoginSession,
    common.ModelCard,
    common.ModelList,
    administration.AccountList,
    administration.AuditList,
    administration.ChangePassword,
    administration.CreateAccount,
    administration.CreateKey,
    administration.CreateUser,
    administration.Deleted,
    administration.Ended,
    administration.KeyFields,
    administration.KeyList,
    administration.NewKeyObject,
    administration.OwnAccountObject,
    administration.RotateKey,
    administration.SessionList,
    administration.UpdateAccount,
    administration.UpdateUser,
    administration.UsageList,
    administration.UserList,
)
RATE_KINDS = ("limit", "remaining", "reset")
RATE_UNITS = ("requests", "tokens")


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


_ALL_HEADERS = {
    "x-request-id": _header("The request's own id: the client's, where it sent a safe one."),
    "openai-processing-ms": _header("How long the server took.", "integer"),
    "openai-version": _header("The version of the wire format."),
}
_WAIT_HEADERS = {
    "Retry-After": _header("After how many seconds to come back.", "integer"),
    "retry-after-ms": _header("The same in milliseconds.", "integer"),
    "x-should-retry": _header("`false` where coming back so soon is of no use."),
}
_RATE_HEADERS = {
    f"x-ratelimit-{kind}-{unit}": _header(f"{text} of {unit} in a minute.")
    for kind, text in zip(
        RATE_KINDS, ("Most", "What is left", "When all will be left again (`1m30s`),"), strict=True
    )
    for unit in RATE_UNITS
}
_FOX = "The quick brown fox jumps over the lazy dog"
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "omai-gpt-4",
        "messages": [{"role": "user", "content": "Hello, how are you?"}],
        "temperature": 0.7,
        "max_tokens": 1000,
    },
    "/v1/responses": {"model": "omai-gpt-4", "input": "Hello, how are you?"},
    "/v1/completions": {"model": "omai-gpt-4", "prompt": "Once upon a time", "max_tokens": 16},
    "/v1/embeddings": {"model": "text-embedding-ada-002", "input": _FOX},
    "/v1/rerank": {
        "model": "text-embedding-ada-002",
        "query": "a quick animal",
        "documents": [_FOX, "Lorem ipsum dolor sit amet"],
    },
    "/v1/score": {
        "model": "text-embedding-ada-002",
        "text_1": "a quick animal",
        "text_2": [_FOX, "Lorem ipsum dolor sit amet"],
    },
    "/tokenize": {"model": "omai-gpt-4", "prompt": _FOX},
    "/detokenize": {"model": "omai-gpt-4", "tokens": [100, 101, 102]},
}
PUBLIC = ("/healthz", "/readyz", "/v1/auth/login")
_ERRORS = {
    400: "The request cannot be served as sent.",
    401: "No usable credentials.",
    403: "Known caller, not allowed.",
    404: "No such model.",
    413: "The body is too large.",
    415: "The body is not JSON, or not a form where one is uploaded.",
    431: "There are too many headers, or they are too long.",
    429: "A rate limit is reached; see Retry-After.",
    500: "The server failed; retry with backoff.",
    503: "The server is overloaded; see Retry-After.",
}
_PART = "The part of the content that Range asks for."
_BEYOND = "Range asks for what lies beyond the content's end."
_FULL = "The server has no room left for files."
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def health(*, can_wait: bool) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a probe. can_wait: 503 is an answer of it."""
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "Yes.", "content": _content("Health"), "headers": _ALL_HEADERS}
    }
    if can_wait:
        answers[503] = {
            "description": "Not yet: these models cannot answer.",
            "content": _content("Health"),
            "headers": _ALL_HEADERS,
        }
    return answers


def request_body(
    model: type[BaseModel], example: dict[str, Any] | None = None, *, required: bool = True
) -> dict[str, Any]:
    """Return a route's `openapi_extra` for a JSON body."""
    content = _content(model.__name__)
    if example is not None:
        content["application/json"]["example"] = example
    return {"requestBody": {"required": required, "content": content}}


def form_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return a route's `openapi_extra` for a form with a file."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def add_inference(
    app: FastAPI,
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    body: type[BaseModel],
    answer: type[BaseModel],
    summary: str,
    tag: str,
    *,
    stream: bool = False,
) -> None:
    """Add a route that runs a model, with its documentation. stream: it may answer so."""
    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        summary=summary,
        tags=[tag],
        response_model=None,
        responses=responses(answer, stream=stream, rated=True),
        openapi_extra=request_body(body, EXAMPLES[path]),
    )


def add_route(
    app: FastAPI,
    method: str,
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    answer: type[BaseModel] | None,
    *,
    summary: str,
    tag: str,
    body: type[BaseModel] | None = None,
    form: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    body_required: bool = True,
) -> None:
    """Add a route with its documentation; names in the path become its parameters.

    answer: None for the content of a file.
    """
    extra = request_body(body, required=body_required) if body else {}
    answers = download_responses() if answer is None else responses(answer)
    if form is not None:
        extra = form_body(form)
        answers[507] = _failure(507, _FULL)
    parameters = [_parameter(name) for name in re.findall(r"{(\w+)}", path)]
    if query is not None:
        schema = query.model_json_schema()
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": kind}
            for name, kind in schema["properties"].items()
        ]
    app.add_api_route(
        path,
        endpoint if query is not None else _without_query(endpoint),
        methods=[method],
        summary=summary,
        tags=[tag],
        response_model=None,
        responses=answers,
        openapi_extra={**extra, "parameters": parameters},
    )


def _without_query(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that refuses every query: a misspelt wish must not pass unseen."""

    async def refusing(request: Request) -> Response:
        read_query(request, administration.NoQuery)
        return await endpoint(request)

    return refusing


def path_parameter(name: str) -> dict[str, Any]:
    """Return a route's `openapi_extra` for a string in its path."""
    return {"parameters": [_parameter(name)]}


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def responses(
    model: type[BaseModel], *, stream: bool = False, rated: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return a route's `responses`: the success, and every error in the envelope."""
    content = _content(model.__name__)
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    limits = _RATE_HEADERS if rated else {}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "Success.", "content": content, "headers": {**_ALL_HEADERS, **limits}}
    }
    for status, text in _ERRORS.items():
        answers[status] = _failure(status, text)
    answers[429]["headers"] |= limits
    return answers


def download_responses() -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that gives a file's content."""
    whole = {"description": "The content.", "content": _BYTES, "headers": _ALL_HEADERS}
    answers: dict[int | str, dict[str, Any]] = {200: whole}
    answers[206] = {**whole, "description": _PART}
    answers |= {status: _failure(status, text) for status, text in _ERRORS.items()}
    answers[416] = _failure(416, _BEYOND)
    return answers


def _failure(status: int, text: str) -> dict[str, Any]:
    headers = {**_ALL_HEADERS, **(_WAIT_HEADERS if status in (429, 503) else {})}
    return {"description": text, "content": _content("ErrorEnvelope"), "headers": headers}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the whole document, made once."""
    if app.openapi_schema is None:
        built = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
        )
        _, definitions = models_json_schema(
            [(model, "validation") for model in SCHEMAS],
            ref_template="#/components/schemas/{model}",
        )
        components = built.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"])
        components["securitySchemes"] = {
            "apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "omai-sk-…"},
            "basic": {
                "type": "http",
                "scheme": "basic",
                "description": "A user's name and password; a session saves their check.",
            },
            "session": {
                "type": "apiKey",
                "in": "cookie",
                "name": "omai_session",
                "description": "What `POST /v1/auth/login` sets.",
            },
        }
        built["security"] = [{"apiKey": []}, {"session": []}, {"basic": []}]
        for path in PUBLIC:
            for operation in built["paths"].get(path, {}).values():
                operation["security"] = []
        app.openapi_schema = built
    return app.openapi_schema
