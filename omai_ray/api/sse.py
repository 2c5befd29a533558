"""Server-sent events: frames out, and whatever makes an answer ended when its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"
_LINE_ENDS = tuple(
    (character.encode(), f"\\u{ord(character):04x}".encode())
    for character in ("\x85", "\u2028", "\u2029")
)
Result = TypeVar("Result")


def frame(value: Any) -> bytes:
    """Return one event with a JSON value."""
    return b"data: " + one_line(value) + b"\n\n"


def one_line(value: Any) -> bytes:
    """Return JSON without characters that some clients take for the end of a line.

    SSE knows of CR and LF only; clients that split lines as Unicode does would cut an event.
    """
    text = orjson.dumps(value)
    for character, escaped in _LINE_ENDS:
        if character in text:
            text = text.replace(character, escaped)
    return text


async def stream_events(
    request: Request,
    frames: AsyncGenerator[bytes, None],
    failure: Callable[[Exception], bytes],
    keep_alive_s: float,
) -> EventStream:
    """Return a stream of the frames, once there is a first one or that time has passed.

    A failure before the first frame is raised, so that it keeps its status, unless it has been
    waited for that long: a client must hear something while a model wakes. Raises ClientDisconnect
    where the client leaves meanwhile.
    """
    first = asyncio.ensure_future(anext(frames))
    try:
        await while_connected(request.receive, _wait(first, keep_alive_s))
        if first.done():
            first.result()
    except BaseException:
        await _end(first, frames)
        raise
    return EventStream(first, frames, failure, keep_alive_s)


async def _wait(future: asyncio.Future[bytes], timeout_s: float) -> None:
    await asyncio.wait({future}, timeout=timeout_s)


class EventStream(Response):
    """Sends a first frame, then those of a generator as they come, and comments in between.

    A comment is sent where nothing else was for keep_alive_s: it is no event, and keeps proxies
    and clients from taking the silence for an end. What the generator raises is sent as `failure`
    writes it, the headers being out. The generator is closed, whatever happens: when it ends, when
    it fails, and when the client disconnects. `first` is its first frame, or on its way to be:
    Python runs no `finally` of a generator that has not begun.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: asyncio.Future[bytes],
        frames: AsyncGenerator[bytes, None],
        failure: Callable[[Exception], bytes],
        keep_alive_s: float,
    ) -> None:
        self._first = first
        self._frames = frames
        self._failure = failure
        self._keep_alive_s = keep_alive_s
        self._sent_at_s = 0.0
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response until the frames, or the client, end."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            (ended,) = await asyncio.gather(sending, return_exceptions=True)
            await _end(self._first, self._frames)
        # A connection that takes nothing more is that of a client who has left.
        if isinstance(ended, Exception) and not isinstance(ended, OSError):
            raise ended

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if not self._first.done():
            await send(_body(COMMENT))
        keeping = asyncio.create_task(self._keep_alive(send))
        try:
            await self._send_frames(send)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
        await send(_body(b"", more=False))

    async def _send_frames(self, send: Send) -> None:
        try:
            frame = await self._first
            while True:
                await self._pass_on(send, frame)
                frame = await anext(self._frames)
        except StopAsyncIteration:
            return
        except OSError:  # of `send`: backends raise errors of their own
            raise
        except Exception as error:
            await self._pass_on(send, self._failure(error))

    async def _pass_on(self, send: Send, chunk: bytes) -> None:
        self._sent_at_s = monotonic()
        await send(_body(chunk))

    async def _keep_alive(self, send: Send) -> None:
        """Send a comment whenever nothing else has been sent for long."""
        self._sent_at_s = monotonic()
        while True:
            await asyncio.sleep(self._sent_at_s + self._keep_alive_s - monotonic())
            if monotonic() - self._sent_at_s >= self._keep_alive_s:
                await self._pass_on(send, COMMENT)


async def _end(first: asyncio.Future[bytes], frames: AsyncGenerator[bytes, None]) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await frames.aclose()


def _body(chunk: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` does; cancel it and raise ClientDisconnect where the client leaves.

    receive: an exchange's, whose body has been read.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working


async def _disconnected(receive: Receive) -> None:
    """Return when the client has left; a connection that fails is one that is gone."""
    with contextlib.suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
