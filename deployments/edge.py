"""What Serve does first with a request: middleware in its proxy, and behind HAProxy in the ingress.

Serve obeys some headers whoever sends them, bounds neither headers nor bodies, and writes its own
failures as text. Serve calls `middlewares` where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH is
`deployments.edge:middlewares`, as `omai-ray serve` and the image set it.
"""

from __future__ import annotations

import asyncio
import logging
import os

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from deployments.haproxy import PEER_HEADER
from omai_ray.api.context import API_VERSION, safe_request_id
from omai_ray.api.failures import render_error, unknown_url
from omai_ray.api.pacing import HEADER as PACED
from omai_ray.api.pacing import SILENCE_S, TAKEN
from omai_ray.api.request_limits import RequestLimits, is_upload
from omai_ray.api.sse import frame
from omai_ray.errors import InvalidRequest, OMAiError, Overloaded, ServerError
from omai_ray.settings import edge_settings

_log = logging.getLogger(__name__)
CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK = "deployments.edge:middlewares"
HAPROXY_VARIABLE = "RAY_SERVE_ENABLE_HA_PROXY"
THROUGHPUT_VARIABLE = "RAY_SERVE_THROUGHPUT_OPTIMIZED"
# How long a request may run, whether leaving cancels it, and which replica it goes to; Serve takes
# either separator.
_CONTROL_HEADERS = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve-multiplexed-model-id",
        b"x-session-id",
    }
)
_CONTROL_PREFIX = b"x-serve-"
_PEER = PEER_HEADER.encode()
AHEAD_BYTES = 1024 * 1024
"""How much of an upload may be read before the application has taken it."""
DROPPED_BYTES = 16 * 1024 * 1024
"""Up to what length a body that is refused is read to its end all the same."""
_ROUTES = "/-/routes"  # Serve's own list of what runs


def middlewares() -> list[Middleware]:
    """Return what Serve's proxy wraps itself in; have it parse HTTP by h11, in bounded time.

    httptools, which uvicorn prefers, loses the body of a request that offers to go over to HTTP/2,
    as Java's clients do, and bounds no header.
    """
    HTTP_PROTOCOLS["auto"] = "deployments.connections:BoundedProtocol"
    behind_haproxy = os.environ.get(HAPROXY_VARIABLE) == "1"
    settings = edge_settings()
    limits = RequestLimits(settings.max_body_bytes, settings.max_upload_bytes)
    return [Middleware(EdgeMiddleware, limits, behind_haproxy=behind_haproxy)]


class EdgeMiddleware:
    """Cleans a request's headers, keeps its limits, and puts every failure into the envelope.

    behind_haproxy: the peer is HAProxy, which says who called it.
    """

    def __init__(
        self, app: ASGIApp, limits: RequestLimits, *, behind_haproxy: bool = False
    ) -> None:
        self._app = app
        self._limits = limits
        self._behind_haproxy = behind_haproxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "websocket":  # there is none of ours
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = safe_request_id(scope)
        exchange = _Exchange(scope, receive, send, request_id, self._limits)
        if self._behind_haproxy:
            scope = {**scope, "client": _caller(scope)}
        try:
            if scope["path"] == _ROUTES:
                raise unknown_url(scope)
            self._limits.check(scope)
        except OMAiError as error:
            await exchange.refuse(error)
            return
        try:
            await self._app(_cleaned(scope, request_id), exchange.receive, exchange.send)
        except Exception:  # Serve's own; the client gets the envelope and the log the cause
            _log.exception("the proxy failed")
        await exchange.finish()


def _cleaned(scope: Scope, request_id: str) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if not _is_control(name)]
    headers.append((b"x-request-id", request_id.encode()))
    if is_upload(scope):
        headers.append((PACED, b"1"))
    return {**scope, "headers": headers}


def _is_control(name: bytes) -> bool:
    name = name.lower().replace(b"_", b"-")
    own = name in (b"x-request-id", _PEER, PACED)
    return own or name in _CONTROL_HEADERS or name.startswith(_CONTROL_PREFIX)


def _caller(scope: Scope) -> tuple[str, int] | None:
    """Return whose request HAProxy passes on; HAProxy itself where it says nothing."""
    said = dict(scope["headers"]).get(_PEER, b"").decode("latin-1")
    host, _, port = said.rpartition(":")
    client: tuple[str, int] | None = scope.get("client")
    return (host, int(port)) if host and port.isdigit() else client


class _Exchange:
    """One request's way in and its answer's way out."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, limits: RequestLimits
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._limits = limits
        self._received = 0
        self._ahead = 0
        self._room = asyncio.Event()
        self._room.set()
        self._whole = False
        self._begun = False
        self._streams = False
        self._ended = False
        self._refused: OMAiError | None = None

    async def receive(self) -> Message:
        """Return the next of the request; one that is refused ends as if its client left.

        That is one whose body is too long, or stands still. An upload is read once there is room
        for more of it.
        """
        try:
            async with asyncio.timeout(None if self._whole or self._begun else SILENCE_S):
                await self._room.wait()
                if self._refused is not None:
                    return {"type": "http.disconnect"}
                message = await self._receive()
        except TimeoutError:
            await self.refuse(self._stands_still(), closes=True)
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        size = len(message.get("body", b""))
        self._received += size
        if is_upload(self._scope):
            self._advance(size)
        if self._received > self._limits.bytes_of(self._scope):
            await self.refuse(self._limits.too_large(self._scope))
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """Send the application's answer, or the envelope where the proxy itself wrote one."""
        if message["type"] == TAKEN:
            self._advance(-message["bytes"])
            return
        if self._refused is not None:
            return
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            if message["status"] >= 400 and headers.get("content-type", "").startswith("text/"):
                await self.refuse(self._of_proxy(message["status"], headers))
                return
            headers["x-request-id"] = self._request_id
            self._begun = True
            self._streams = headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, error: OMAiError, *, closes: bool = False) -> None:
        """Answer with an error, if nothing was answered yet; nothing else is sent then.

        closes: the rest of the request is not read.
        """
        self._refused = error
        self._room.set()
        if self._begun:
            return
        self._begun = True
        response = render_error(error)
        response.headers["x-request-id"] = self._request_id
        response.headers["openai-version"] = API_VERSION
        if closes or (error.status in (413, 431) and not self._ends_soon()):
            response.headers["connection"] = "close"
        await response(self._scope, self._receive, self._send)

    def _advance(self, size: int) -> None:
        """Count what was read, or, below 0, taken."""
        self._ahead += size
        if self._ahead < AHEAD_BYTES or self._refused is not None:
            self._room.set()
        else:
            self._room.clear()

    async def finish(self) -> None:
        """Answer where the proxy has not, or say that a stream of its will not go on."""
        if not self._begun:
            await self.refuse(_lost(self._request_id))
        elif self._streams and not self._ended:  # an ingress replica died in the middle of it
            event = frame(_lost(self._request_id).envelope())
            await self._send({"type": "http.response.body", "body": event})

    def _ends_soon(self) -> bool:
        """Whether the rest of a body that is too long is so short that it is read, and dropped.

        Closing in the middle of it may lose the answer, and the client's next request.
        """
        length = dict(self._scope["headers"]).get(b"content-length", b"")
        return length.isdigit() and int(length[:20]) <= DROPPED_BYTES

    def _stands_still(self) -> OMAiError:
        _log.error(
            "request %s stands still: %d bytes of its body were read, %d of them not taken",
            *(self._request_id, self._received, self._ahead),
        )
        if not self._room.is_set():
            return Overloaded("The server could not store the upload in time. Please try again.")
        return InvalidRequest(
            f"{self._received} bytes of the request's body came, and nothing more for "
            f"{SILENCE_S:g} s.",
            code="request_timeout",
        )

    def _of_proxy(self, status: int, headers: MutableHeaders) -> OMAiError:
        if status == 404:
            return unknown_url(self._scope)
        if status == 408:
            return Overloaded("The server did not answer in time. Please try again later.")
        if status in (429, 503):
            wait = headers.get("retry-after", "1")
            return Overloaded(
                "The server has too many requests at once. Please try again later.",
                headers={"Retry-After": wait if wait.isdigit() else "1"},
            )
        return _lost(self._request_id)


def _lost(request_id: str) -> ServerError:
    return ServerError(
        "The server could not answer the request. Please try again, and mention the request id "
        f"{request_id} if it keeps happening."
    )
