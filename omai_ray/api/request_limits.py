"""What a request may be: headers, and a body that is refused before it is buffered."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omai_ray.api.pacing import HEADER as PACED
from omai_ray.errors import HeadersTooLarge, InvalidRequest, PayloadTooLarge

MAX_HEADERS = 128
MAX_HEADER_BYTES = 32 * 1024
UPLOADS = ("POST", "/v1/files")


@dataclass(frozen=True)
class RequestLimits:
    """What a request may be, as far as its headers tell, and how long its body.

    max_upload_bytes: of a body that uploads a file; by default that of any other.
    """

    max_body_bytes: int
    max_upload_bytes: int | None = None

    def check(self, scope: Scope) -> None:
        """Raise HeadersTooLarge, InvalidRequest, or PayloadTooLarge for a declared length."""
        # The edge adds these, whose length is bounded elsewhere.
        headers = [item for item in scope["headers"] if item[0] not in (b"x-request-id", PACED)]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            raise HeadersTooLarge(
                f"The request has {len(headers)} headers of {size} bytes: at most {MAX_HEADERS} "
                f"of {MAX_HEADER_BYTES} bytes are accepted."
            )
        named = Headers(scope=scope)
        length = named.get("content-length")
        if length is None:
            return
        if "transfer-encoding" in named:  # the two can differ, and what follows be smuggled in
            raise InvalidRequest("Send either 'Content-Length' or 'Transfer-Encoding', not both.")
        if not length.isascii() or not length.isdigit():
            raise InvalidRequest("Invalid 'Content-Length' header: expected a number of bytes.")
        if int(length[:20]) > self.bytes_of(scope):
            raise self.too_large(scope)

    def bytes_of(self, scope: Scope) -> int:
        """Return how long a request's body may be."""
        if self.max_upload_bytes is not None and is_upload(scope):
            return self.max_upload_bytes
        return self.max_body_bytes

    def too_large(self, scope: Scope) -> PayloadTooLarge:
        """Return what a body that is too long is answered with."""
        return PayloadTooLarge(
            f"The request body is too large: at most {self.bytes_of(scope)} bytes are accepted."
        )


def is_upload(scope: Scope) -> bool:
    """Whether a request uploads a file."""
    return (scope["method"], scope["path"]) == UPLOADS


class RequestLimitsMiddleware:
    """Refuses what the headers tell at once, and a body of undeclared length at its limit."""

    def __init__(self, app: ASGIApp, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises HeadersTooLarge, PayloadTooLarge."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._limits.check(scope)
        received, most = 0, self._limits.bytes_of(scope)

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise self._limits.too_large(scope)
            return message

        await self._app(scope, limited, send)
