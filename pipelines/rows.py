"""From a slice's texts to ids, and from ids to vectors; a bad row never takes others with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.engine import Engine, TextEngine
from pipelines.job import OnLong, VectorDtype
from pipelines.read import DeadLetter, Slice

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prepared:
    """A slice whose texts are tokenised.

    kept: indices in the slice of the rows that ids are for. truncated: how many were cut.
    """

    slice: Slice
    kept: list[int]
    ids: list[list[int]]
    dead: list[DeadLetter]
    truncated: int
    tokenise_s: float


@dataclass(frozen=True)
class Embedded:
    """A slice with its vectors. vectors: [len(kept), D], rows as in kept."""

    slice: Slice
    kept: list[int]
    vectors: npt.NDArray[np.floating]
    dead: list[DeadLetter]
    tokens: int
    forward_s: float


def bisect(
    run: Callable[[Sequence[Item]], Result], items: Sequence[Item], first: int = 0
) -> Iterator[tuple[int, int, Result | Exception]]:
    """Run a batch; where it fails, its halves, down to the item at fault.

    Yields (index, count, result) in order; an exception stands for the one item that raised it.
    """
    try:
        result = run(items)
    except Exception as error:
        if len(items) == 1:
            yield first, 1, error
            return
        middle = len(items) // 2
        yield from bisect(run, items[:middle], first)
        yield from bisect(run, items[middle:], first + middle)
    else:
        yield first, len(items), result


def prepare(part: Slice, column: str, engine: TextEngine, on_long: OnLong) -> Prepared:
    """Tokenise a slice's texts; null, empty and undecodable ones become dead letters."""
    started = time.perf_counter()
    dead: dict[int, tuple[str, str]] = {}
    texts: dict[int, str] = {}
    for row, text in enumerate(_texts(part.batch.column(column))):
        if text is None:
            dead[row] = ("null", "")
        elif isinstance(text, UnicodeDecodeError):
            dead[row] = ("invalid_utf8", str(text))
        elif not text.strip():
            dead[row] = ("empty", "")
        else:
            texts[row] = text
    ids = _tokenise(texts, engine, dead)
    truncated = _fit(ids, engine, on_long, dead)
    return Prepared(
        slice=part,
        kept=list(ids),
        ids=list(ids.values()),
        dead=_letters(part, dead),
        truncated=truncated,
        tokenise_s=time.perf_counter() - started,
    )


def _texts(column: pa.Array) -> list[str | UnicodeDecodeError | None]:
    """Return a column's texts. Readers do not check UTF-8, so a row can fail to decode."""
    try:
        texts: list[str | UnicodeDecodeError | None] = column.to_pylist()
    except UnicodeDecodeError:
        return [_text(value) for value in column]
    return texts


def _text(value: pa.Scalar) -> str | UnicodeDecodeError | None:
    try:
        text: str | None = value.as_py()
    except UnicodeDecodeError as error:
        return error
    return text


def _tokenise(
    texts: dict[int, str], engine: TextEngine, dead: dict[int, tuple[str, str]]
) -> dict[int, list[int]]:
    rows = list(texts)
    ids: dict[int, list[int]] = {}
    for first, count, result in bisect(engine.tokenize, list(texts.values())) if rows else ():
        if isinstance(result, Exception):
            dead[rows[first]] = ("tokenise_failed", _explain(result))
        else:
            ids.update(zip(rows[first : first + count], result, strict=True))
    return ids


def _fit(
    ids: dict[int, list[int]], engine: TextEngine, on_long: OnLong, dead: dict[int, tuple[str, str]]
) -> int:
    """Cut or refuse what is above the model's context; return how many were cut."""
    long = [row for row, tokens in ids.items() if len(tokens) > engine.context]
    for row in long:
        if on_long == "truncate":
            ids[row] = engine.tokenizer.shorten(ids[row])
        else:
            count = len(ids.pop(row))
            detail = f"the text has {count} tokens; the model accepts {engine.context}"
            dead[row] = ("too_long", detail)
    return len(long) if on_long == "truncate" else 0


def embed(prepared: Prepared, engine: Engine, dtype: VectorDtype) -> Embedded:
    """Embed a slice. A row that the engine fails on, or whose vector is not finite, is dead."""
    started = time.perf_counter()
    vectors = np.empty((len(prepared.ids), engine.dimension), dtype=dtype)
    dead: dict[int, tuple[str, str]] = {}
    good = np.ones(len(prepared.ids), dtype=bool)
    for first, count, result in bisect(engine.embed_ids, prepared.ids) if prepared.ids else ():
        if isinstance(result, Exception):
            good[first] = False
            dead[prepared.kept[first]] = ("engine_failed", _explain(result))
        else:
            with np.errstate(over="ignore"):
                vectors[first : first + count] = result
    for index in np.flatnonzero(good & ~np.isfinite(vectors).all(axis=1)):
        good[index] = False
        dead[prepared.kept[index]] = ("not_finite", f"the vector is not finite in {dtype}")
    chosen = np.flatnonzero(good)
    return Embedded(
        slice=prepared.slice,
        kept=[prepared.kept[index] for index in chosen],
        vectors=vectors if good.all() else vectors[chosen],
        dead=_letters(prepared.slice, dead),
        tokens=sum(len(prepared.ids[index]) for index in chosen),
        forward_s=time.perf_counter() - started,
    )


def _letters(part: Slice, dead: dict[int, tuple[str, str]]) -> list[DeadLetter]:
    return [
        DeadLetter(part.first_row + row, 1, reason, detail)
        for row, (reason, detail) in sorted(dead.items())
    ]


def _explain(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
