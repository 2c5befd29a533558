"""Connections of clients that never finish what they begin to send: closed after a bounded time."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployments.haproxy import HEADERS_S

REST_S = 60.0
"""How long the rest of a body may take whose request is answered already."""


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which waits for HEADERS_S for a request's headers, and no longer.

    Nor longer than REST_S for the rest of a request that is answered before its end. uvicorn
    itself waits for ever for the headers of a connection's first request, and for the rest of any
    request that has begun.
    """

    _awaited: str | None = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_or_not()

    def data_received(self, data: bytes) -> None:
        """Take what came; wait on where a request's headers, or its rest, are not whole yet."""
        super().data_received(data)
        self._wait_or_not()

    def on_response_complete(self) -> None:
        """Begin to wait for the rest of a request that is answered; uvicorn's timer ends idle."""
        super().on_response_complete()
        if self._lacks() == "rest":
            self._wait_or_not()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _lacks(self) -> str | None:
        """Return what the client has yet to send in bounded time."""
        if self.conn.their_state is h11.IDLE:
            return "headers"
        answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        return "rest" if answered else None

    def _wait_or_not(self) -> None:
        lacks = self._lacks()
        if lacks == self._awaited:
            return  # what comes does not put the deadline off
        self._stop_waiting()
        self._awaited = lacks
        if lacks is not None:
            after_s = HEADERS_S if lacks == "headers" else REST_S
            self._deadline = self.loop.call_later(after_s, self._close_unfinished)

    def _stop_waiting(self) -> None:
        self._awaited = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_unfinished(self) -> None:
        if self._lacks() == self._awaited and not self.transport.is_closing():
            self.transport.close()
