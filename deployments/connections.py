"""Connections of clients that never finish what they begin to send: closed after a bounded time."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployments.haproxy import HEADERS_S


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which waits for a request's headers for HEADERS_S, and no longer.

    uvicorn itself waits for ever for those of a connection's first request, and for the rest of
    any that has begun.
    """

    _headers_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_or_not()

    def data_received(self, data: bytes) -> None:
        """Take what came; wait on where a request's headers are not whole yet."""
        super().data_received(data)
        self._wait_or_not()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _wait_or_not(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._headers_deadline is None:
            self._headers_deadline = self.loop.call_later(HEADERS_S, self._close_unfinished)

    def _stop_waiting(self) -> None:
        if self._headers_deadline is not None:
            self._headers_deadline.cancel()
            self._headers_deadline = None

    def _close_unfinished(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
