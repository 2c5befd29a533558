"""Bodies above a limit are refused before they are buffered."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omai_ray.errors import InvalidRequest, PayloadTooLarge


class BodyLimitMiddleware:
    """Refuses a declared length at once, an undeclared one at the byte that is too many."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises PayloadTooLarge."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._check_declared(Headers(scope=scope).get("content-length"))
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, limited, send)

    def _check_declared(self, length: str | None) -> None:
        if length is None:
            return
        if not length.isascii() or not length.isdigit():
            raise InvalidRequest("Invalid 'Content-Length' header: expected a number of bytes.")
        if int(length[:20]) > self._max_bytes:
            raise self._too_large()

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The request body is too large: at most {self._max_bytes} bytes are accepted."
        )
