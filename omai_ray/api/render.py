"""Bodies out: orjson, numpy arrays included."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

_INLINE_NUMBERS = 10_000
# Below this many bytes a network is not worth a compressor's time.
_LEAST_COMPRESSED = 256 * 1024
_GZIP = 16 + zlib.MAX_WBITS


class JsonBytes(Response):
    """A JSON response; float32 arrays are written without a Python loop."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class ObjectResponse(Response):
    """A schema's object as JSON; it is about somebody, so that nothing on the way may keep it."""

    media_type = "application/json"

    def __init__(self, content: BaseModel) -> None:
        super().__init__(content, headers={"Cache-Control": "no-store"})

    def render(self, content: BaseModel) -> bytes:
        """Return the body."""
        return content.model_dump_json().encode()


async def large_json(
    request: Request, numbers: int, write: Callable[[], bytes], *, compressible: bool
) -> Response:
    """Return what `write` returns, off the event loop where it is about many numbers.

    A large body is compressed where the client takes gzip and it would shrink much.
    """
    if numbers <= _INLINE_NUMBERS:
        return Response(write(), media_type="application/json")
    headers = {"Vary": "Accept-Encoding"}
    compress = compressible and _takes_gzip(request.headers.get("accept-encoding", ""))

    def work() -> bytes:
        body = write()
        if not compress or len(body) < _LEAST_COMPRESSED:
            return body
        headers["Content-Encoding"] = "gzip"
        compressor = zlib.compressobj(level=1, wbits=_GZIP)
        return compressor.compress(body) + compressor.flush()

    body = await asyncio.to_thread(work)
    return Response(body, media_type="application/json", headers=headers)


def _takes_gzip(accepted: str) -> bool:
    """Tell what an Accept-Encoding says of gzip (RFC 9110, section 12.5.3)."""
    for item in accepted.lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip() == "gzip":
            return re.fullmatch(r"\s*q=0(\.0*)?\s*", parameters) is None
    return False
