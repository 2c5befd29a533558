"""Every failure's answer: errors are rendered here and nowhere else."""

from __future__ import annotations

import logging

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omai_ray.errors import NotFound, OMAiError, ServerError
from omai_ray.telemetry.logs import request_id_var

_log = logging.getLogger("omai_ray.api")


class FailureMiddleware:
    """Answers with the error that the application raises, unless an answer has begun.

    A client that has left is no failure.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
            return
        except OMAiError as error:
            failure = error
        except ClientDisconnect:
            return
        except Exception:  # whatever it is, the client gets the envelope and the log the cause
            _log.exception("unhandled error")
            failure = internal_error()
        if not begun:
            await render_error(failure)(scope, receive, send)


def render_error(error: OMAiError) -> Response:
    """Return the response that an error is answered with."""
    return Response(
        orjson.dumps(error.envelope()),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )


def unknown_url(scope: Scope) -> NotFound:
    """Return what a path that leads nowhere is answered with."""
    message = f"Invalid URL ({scope['method']} {scope['path'][:200]})"
    if not scope["path"].startswith("/v1/") or scope["path"].startswith("/v1/v1/"):
        message += ". The API is below /v1: a client's base URL ends in /v1"
    return NotFound(message, code="unknown_url")


def internal_error() -> ServerError:
    """Return what a client is told of a failure whose cause is in the log."""
    return ServerError(
        "The server had an error while processing your request. Please try again, and mention "
        f"the request id {request_id_var.get()} if it keeps happening."
    )
