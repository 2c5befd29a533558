"""multipart/form-data, read as it comes: no part of it is ever held whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from omai_ray.api.pacing import SILENCE_S
from omai_ray.errors import InvalidRequest, UnsupportedMediaType

UPLOAD_S = 6 * 3600.0
"""How long a form may take in all: far less than content without a row is left alone."""
_PLAIN = (b"", b"7bit", b"8bit", b"binary")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a form: its name, and the filename where it has one."""

    name: str
    filename: str | None


async def read_parts(request: Request) -> AsyncIterator[tuple[Part, bytes]]:
    """Yield each part with a piece of its content, and first of all with none.

    Raises UnsupportedMediaType for another kind of body; InvalidRequest for one that cannot be
    read, has a part twice, stops or ends too early.
    """
    parser = _Parser(_boundary(request))
    async for data in _pieces(request):
        for item in parser.feed(data):
            yield item
    parser.finish()


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield a body as it comes.

    Raises InvalidRequest for a client that has stopped sending, or is not done in time.
    """
    stream, clock = request.stream(), asyncio.get_running_loop().time
    deadline = clock() + UPLOAD_S
    while True:
        try:
            async with asyncio.timeout_at(min(deadline, clock() + SILENCE_S)):
                data = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _late(clock() >= deadline) from None
        if clock() >= deadline:
            raise _late(whole=True)
        yield data


def _late(whole: bool) -> InvalidRequest:
    why = (
        f"The request did not end within {UPLOAD_S:g} s."
        if whole
        else f"Nothing more of the request came for {SILENCE_S:g} s."
    )
    return InvalidRequest(why, code="request_timeout")


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType(
            "The body must be a form: send the header 'Content-Type: multipart/form-data'."
        )
    if not options.get(b"boundary"):
        raise _unreadable("its Content-Type names no boundary")
    return options[b"boundary"]


@dataclass(slots=True)
class _Headers:
    """A part's headers as they come."""

    values: dict[bytes, bytes] = field(default_factory=dict)
    name: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)

    def end_one(self) -> None:
        self.values[bytes(self.name).lower()] = bytes(self.value)
        self.name.clear()
        self.value.clear()


class _Parser:
    """Turns bytes into parts and their content."""

    def __init__(self, boundary: bytes) -> None:
        self._found: list[tuple[Part, bytes]] = []
        self._names: set[str] = set()
        self._headers = _Headers()
        self._part = Part("", None)
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_part_data": self._add_data,
                    "on_header_field": self._add_name,
                    "on_header_value": self._add_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_content,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _unreadable(str(error)) from None

    def feed(self, data: bytes) -> list[tuple[Part, bytes]]:
        """Return what the next bytes of the body hold."""
        self._found = []
        if data:
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise _unreadable(str(error)) from None
        return self._found

    def finish(self) -> None:
        """Raise InvalidRequest where the body is not at its end."""
        if not self._ended:
            raise _unreadable("it ends before its last boundary")

    def _begin_part(self) -> None:
        self._headers = _Headers()

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._headers.name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._headers.value += data[start:end]

    def _end_header(self) -> None:
        self._headers.end_one()

    def _begin_content(self) -> None:
        self._part = _part_of(self._headers.values)
        if self._part.name in self._names:
            name = self._part.name[:80]
            raise InvalidRequest(f"The form has '{name}' more than once.", param=name)
        self._names.add(self._part.name)
        self._found.append((self._part, b""))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._found.append((self._part, data[start:end]))

    def _end(self) -> None:
        self._ended = True


def _part_of(headers: dict[bytes, bytes]) -> Part:
    disposition = headers.get(b"content-disposition", b"").decode("latin-1")
    kind, options = parse_options_header(disposition)
    if kind != b"form-data" or b"name" not in options:
        raise _unreadable("a part of it has no name")
    if headers.get(b"content-transfer-encoding", b"").strip().lower() not in _PLAIN:
        raise _unreadable("a part of it has a Content-Transfer-Encoding")
    filename = options.get(b"filename")
    return Part(_text(options[b"name"]), None if filename is None else _text(filename))


def _text(raw: bytes) -> str:
    """Return a header's text: UTF-8 as all clients write it, else what it may have been."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _unreadable(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"We could not parse the form of your request: {why}.", code="invalid_form"
    )
