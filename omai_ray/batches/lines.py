"""The lines of a batch's input: read with bounded memory, each checked on its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, get_args

import orjson

from omai_ray.nesting import MAX_DEPTH, TOO_DEEP, is_deeper

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
EMBEDDINGS = "/v1/embeddings"
MAX_CUSTOM_ID = 512
_KEYS = ("custom_id", "method", "url", "body")
_SKIPPED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not blank. number: from 1; offset, length: in bytes, its end included.

    content: what it says; None where that is longer than is read.
    """

    number: int
    offset: int
    length: int
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch."""

    custom_id: str
    body: dict[str, Any]


class BadLine(Exception):
    """A line that cannot be a request. code, param: as the batch's errors name them."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def read_lines(stream: BinaryIO, longest: int, first: int = 1) -> Iterator[RawLine]:
    """Yield the lines that are not blank, to the end of the stream.

    longest: bytes of a line that are read; the rest of a longer one is skipped. first: the number
    of the first one.
    """
    number, offset = first, 0
    while read := stream.readline(longest + 2):
        length = len(read)
        content: bytes | None = read.rstrip(b"\r\n")
        if length == longest + 2 and not read.endswith(b"\n"):
            length += _skip(stream)
            content = None
        elif len(read.rstrip(b"\r\n")) > longest:
            content = None
        if content is None or content.strip():
            yield RawLine(number, offset, length, content)
        number += 1
        offset += length


def _skip(stream: BinaryIO) -> int:
    """Read to the end of the line; return how many bytes that was."""
    skipped = 0
    while read := stream.readline(_SKIPPED_BYTES):
        skipped += len(read)
        if read.endswith(b"\n"):
            break
    return skipped


def parse_line(content: bytes, endpoint: str) -> Line:
    """Return the request that a line is. Raises BadLine."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise BadLine("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(value, dict):
        raise BadLine("invalid_json_line", "This line is not a JSON object.")
    for key in _KEYS:
        if key not in value:
            raise BadLine(
                "missing_required_parameter", f"Missing required parameter: '{key}'.", key
            )
    for key in value:
        if key not in _KEYS:
            raise BadLine("unknown_parameter", f"Unknown parameter: '{key[:80]}'.", key[:80])
    custom_id = value["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise BadLine(
            "invalid_custom_id",
            f"Invalid 'custom_id': expected a string of 1 to {MAX_CUSTOM_ID} characters.",
            "custom_id",
        )
    if value["method"] != "POST":
        raise BadLine("invalid_method", "Invalid 'method': only 'POST' is supported.", "method")
    if value["url"] != endpoint:
        raise BadLine(
            "mismatched_url",
            f"Invalid 'url': expected the batch's endpoint, '{endpoint}'.",
            "url",
        )
    body = value["body"]
    if not isinstance(body, dict):
        raise BadLine("invalid_body", "Invalid 'body': expected a JSON object.", "body")
    if is_deeper(body, MAX_DEPTH):
        raise BadLine("invalid_json", TOO_DEEP, "body")
    return Line(custom_id, body)


def model_of(line: Line) -> str:
    """Return the model that a request names. Raises BadLine."""
    model = line.body.get("model")
    if not isinstance(model, str) or not model:
        raise BadLine(
            "missing_required_parameter", "Missing required parameter: 'model'.", "body.model"
        )
    return model


def count_inputs(line: Line) -> int:
    """Return how many texts, or lists of tokens, a request for embeddings has."""
    given = line.body.get("input")
    if isinstance(given, list) and not (given and isinstance(given[0], int)):
        return len(given)
    return 1
