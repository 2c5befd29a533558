"""Bodies out: orjson, numpy arrays included."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response


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
