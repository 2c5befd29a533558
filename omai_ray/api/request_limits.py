"""What a request may be: headers, and a body that is refused before it is buffered."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omai_ray.errors import HeadersTooLarge, InvalidRequest, PayloadTooLarge

MAX_HEADERS = 128
MAX_HEADER_BYTES = 32 * 1024


class RequestLimitsMiddleware:
    """Refuses too many headers, a declared length at once, and an undeclared one at its limit."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises HeadersTooLarge, PayloadTooLarge."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _check_headers(scope)
        self._check_declared(Headers(scope=scope).get("content-length"))
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise self._too_large()
            return message

        await self._app(scope, limited, send)

    def _check_declared(self, length: str | None) -> None:
        if length is None:
            return
        if not length.isascii() or not length.isdigit():
            raise InvalidRequest("Invalid 'Content-Length' header: expected a number of bytes.")
        if int(length[:20]) > self._max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The request body is too large: at most {self._max_body_bytes} bytes are accepted."
        )


def _check_headers(scope: Scope) -> None:
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(
            f"The request has {len(headers)} headers of {size} bytes: at most {MAX_HEADERS} of "
            f"{MAX_HEADER_BYTES} bytes are accepted."
        )
