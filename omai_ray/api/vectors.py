"""Vectors as the JSON of POST /v1/embeddings, written whole: no Python runs for each of them."""

from __future__ import annotations

import binascii

import numpy as np
import numpy.typing as npt
import orjson

_OPENING = b'{"object":"embedding","index":'
_TEXT = b',"embedding":"'


def embeddings_json(
    vectors: npt.NDArray[np.float32], model: str, tokens: int, *, as_base64: bool
) -> bytes:
    """Return the body for float32 [N, D], N > 0: numbers, or base64 of little-endian float32."""
    tail = orjson.dumps(
        {"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    )
    data = _base64_entries(vectors) if as_base64 else _number_entries(vectors)
    return b'{"object":"list","data":[' + data + b"]," + tail[1:]


def _number_entries(vectors: npt.NDArray[np.float32]) -> bytes:
    entries = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    return orjson.dumps(entries, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def _base64_entries(vectors: npt.NDArray[np.float32]) -> bytes:
    """Return the entries as one table of characters, a row for each.

    JSON allows spaces before a number, so that all rows are equally long.
    """
    count = len(vectors)
    texts = _base64_rows(vectors)
    indices = np.char.rjust(np.arange(count).astype("S"), len(str(count - 1)))
    parts = (
        _row(_OPENING, count),
        indices.view(np.uint8).reshape(count, -1),
        _row(_TEXT, count),
        texts,
        _row(b'"},', count),
    )
    return np.hstack(parts).tobytes()[:-1]


def _base64_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return uint8 [N, W], the characters of each row's base64 (RFC 4648, section 4)."""
    rows = np.ascontiguousarray(vectors, dtype="<f4").view(np.uint8)
    count, width = rows.shape
    padding = -width % 3
    whole = np.pad(rows, ((0, 0), (0, padding)))
    text = binascii.b2a_base64(whole.tobytes(), newline=False)
    characters = np.frombuffer(text, dtype=np.uint8).reshape(count, -1).copy()
    if padding:
        characters[:, -padding:] = ord("=")
    return characters


def _row(text: bytes, count: int) -> npt.NDArray[np.uint8]:
    return np.broadcast_to(np.frombuffer(text, dtype=np.uint8), (count, len(text)))
