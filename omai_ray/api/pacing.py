"""Uploads that are read no faster than they are stored.

Serve reads a request ahead of the application, into queues without a bound. So the edge in front of
Serve stops reading a client that is too far ahead; how far that is, the application tells it by
messages of its own among those of the answer.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = b"x-omai-paced"
"""By it the edge asks to be told."""
TAKEN = "omai.request.taken"
TOLD_BYTES = 256 * 1024
SILENCE_S = 45.0
"""How long a body may stand still: longer than storage takes (30 s), shorter than clients wait."""


class PacingMiddleware:
    """Tells an edge that asks for it what of a body was taken, a part of its room at a time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or all(name != HEADER for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return
        taken = 0

        async def telling() -> Message:
            nonlocal taken
            if taken >= TOLD_BYTES:
                told, taken = taken, 0
                await send({"type": TAKEN, "bytes": told})
            message = await receive()
            taken += len(message.get("body", b""))
            if not message.get("more_body", False):
                taken = 0  # nothing is left to be read
            return message

        await self._app(scope, telling, send)
