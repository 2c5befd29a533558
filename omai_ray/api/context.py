"""The outermost middleware: a request's id, its response's headers, its log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omai_ray.ledger.ledger import UsageRecord
from omai_ray.telemetry import metrics
from omai_ray.telemetry.logs import FIELDS, request_id_var
from omai_ray.telemetry.recorder import Recorder

_log = logging.getLogger("omai_ray.access")
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
API_VERSION = "2020-10-01"
CLIENT_CLOSED_REQUEST = 499


@dataclass(slots=True)
class RequestContext:
    """What one request gathers on its way, kept in the scope's state.

    request_id: the client's own where it sent a safe one, so it may repeat; usage_id never does,
    and is what quota and ledger go by. headers: for the response, whatever it becomes. facts: for
    the log line (model, tokens). batch_id: of the batch whose line it is, if it is one;
    recorded_as: what its record is called then, however often it is tried. charged: it is paid for
    as answered, or about to be. usage: what it used, once that is recorded.
    """

    request_id: str
    started_s: float
    usage_id: str = field(default_factory=lambda: f"use_{uuid.uuid4().hex}")
    headers: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    batch_id: str | None = None
    recorded_as: str | None = None
    charged: bool = False
    usage: UsageRecord | None = None


def context_of(scope: Scope) -> RequestContext:
    """Return the request's context."""
    context: RequestContext = scope["state"]["context"]
    return context


def safe_request_id(scope: Scope) -> str:
    """Return the client's own id where it is a short, safe token, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SAFE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


class ContextMiddleware:
    """Wraps the whole application.

    proxy_echoes_id: the proxy in front adds the request's own x-request-id to the response, so
    that it must not be added here again.
    """

    def __init__(self, app: ASGIApp, recorder: Recorder, *, proxy_echoes_id: bool = False) -> None:
        self._app = app
        self._recorder = recorder
        self._active = 0
        recorder.count(metrics.AUTH_FAILURES, 0)
        self._proxy_echoes_id = proxy_echoes_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; lifespan messages pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = safe_request_id(scope)
        context = RequestContext(request_id, time.perf_counter())
        given = Headers(scope=scope).get("x-request-id")
        if not (self._proxy_echoes_id and request_id == given):
            context.headers["x-request-id"] = request_id
        scope["state"] = {**scope.get("state", {}), "context": context}
        token = request_id_var.set(context.request_id)
        status: int | None = None
        self._count_active(1)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _all_headers(context).items():
                    headers[name] = value
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            # A client that left before an answer has begun gets none.
            status = status or CLIENT_CLOSED_REQUEST
            _log_request(scope, context, status)
            request_id_var.reset(token)
            self._count_active(-1)
            self._count(scope, status)

    def _count_active(self, change: int) -> None:
        self._active += change
        self._recorder.set(metrics.REQUESTS_ACTIVE, self._active)

    def _count(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", metrics.OTHER)
        self._recorder.count(metrics.REQUESTS, 1, route, str(status))
        if status == 401:
            self._recorder.count(metrics.AUTH_FAILURES, 1)


def _all_headers(context: RequestContext) -> dict[str, str]:
    elapsed_ms = (time.perf_counter() - context.started_s) * 1000
    return {
        "openai-processing-ms": str(round(elapsed_ms)),
        "openai-version": API_VERSION,
        **context.headers,
    }


def _log_request(scope: Scope, context: RequestContext, status: int) -> None:
    route = scope.get("route")
    fields = {
        "method": scope["method"],
        "route": getattr(route, "path", None),
        "status": status,
        "duration_ms": round((time.perf_counter() - context.started_s) * 1000, 1),
        "usage_id": context.usage_id,
        **context.facts,
    }
    _log.info("request", extra={FIELDS: fields})
