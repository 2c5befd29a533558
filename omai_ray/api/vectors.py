"""Vectors as the JSON of POST /v1/embeddings, written whole: no Python runs for each of them."""

from __future__ import annotations

import binascii

import numpy as np
import numpy.typing as npt
import orjson

_OPENING = b'{"object":"embedding","index":'
_PIECE = 64
_TEXT = b',"embedding":"'


def embeddings_json(
    vectors: npt.NDArray[np.float32], model: str, tokens: int, *, as_base64: bool
) -> bytes:
    """Return the body for float32 [N, D], N > 0: numbers, or base64 of little-endian float32."""
    tail = orjson.dumps(
        {"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    )
    data = _base64_entries(vectors) if as_base64 else _number_entries(vectors)
    return b"".join((b'{"object":"list","data":[', data, b"],", tail[1:]))


def _number_entries(vectors: npt.NDArray[np.float32]) -> bytes:
    entries = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    # In pieces, between which other threads run.
    pieces = (entries[start : start + _PIECE] for start in range(0, len(entries), _PIECE))
    return b",".join(orjson.dumps(p, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for p in pieces)


def _base64_entries(vectors: npt.NDArray[np.float32]) -> memoryview:
    """Return the entries as one table of characters, a row for each.

    JSON allows spaces before a number, so that all rows are equally long.
    """
    count = len(vectors)
    digits = len(str(count - 1))
    indices = np.char.rjust(np.arange(count).astype("S"), digits).astype(f"S{digits}")
    texts = _base64_rows(vectors)
    columns = (
        np.frombuffer(_OPENING, dtype=np.uint8),
        indices.view(np.uint8).reshape(count, digits),
        np.frombuffer(_TEXT, dtype=np.uint8),
        texts,
        np.frombuffer(b'"},', dtype=np.uint8),
    )
    table = np.empty((count, sum(column.shape[-1] for column in columns)), dtype=np.uint8)
    start = 0
    for column in columns:
        table[:, start : start + column.shape[-1]] = column
        start += column.shape[-1]
    return table.reshape(-1)[:-1].data


def _base64_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return uint8 [N, W], the characters of each row's base64 (RFC 4648, section 4)."""
    rows = np.ascontiguousarray(vectors, dtype="<f4").view(np.uint8)
    padding = -rows.shape[1] % 3
    if not padding:
        text = binascii.b2a_base64(rows.data, newline=False)
        return np.frombuffer(text, dtype=np.uint8).reshape(len(rows), -1)
    text = binascii.b2a_base64(np.pad(rows, ((0, 0), (0, padding))).data, newline=False)
    characters = np.frombuffer(text, dtype=np.uint8).reshape(len(rows), -1).copy()
    characters[:, -padding:] = ord("=")
    return characters
