"""From a slice's texts to ids, and from ids to vectors; a bad row never takes others with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipelines.bisection import bisect
from pipelines.chunk import Chunking, number_chunks, pool_mean
from pipelines.dedup import OnceEmbedder
from pipelines.engine import Engine, TextEngine
from pipelines.job import OnLong, VectorDtype
from pipelines.read import DeadLetter, Slice
from pipelines.text_source import UNREADABLE, TextSource

# Of the texts that are tokenised at once: a token takes some hundred bytes until its id is read.
GROUP_CHARACTERS = 1 << 20

Tokens = TypeVar("Tokens")
Dead = dict[int, tuple[str, str]]  # reason and detail, by index in the slice


@dataclass(frozen=True)
class Prepared:
    """A slice whose texts are tokenised.

    rows: for each of ids, the index in the slice of the row whose text, or a chunk of it, they
    are; in order. spans: the chunks' characters in their texts; None where texts are not cut.
    truncated: how many texts were cut to the context.
    """

    slice: Slice
    rows: list[int]
    ids: list[Sequence[int]]
    spans: list[tuple[int, int]] | None
    dead: list[DeadLetter]
    truncated: int
    tokenise_s: float


@dataclass(frozen=True)
class Embedded:
    """A slice with its vectors.

    rows: index in the slice of each vector's row, in order; input_rows: how many they are, each
    once. vectors: [len(rows), D]. made: columns of integers about the vectors, by name.
    """

    slice: Slice
    rows: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.floating]
    dead: list[DeadLetter]
    tokens: int
    forward_s: float
    input_rows: int
    made: dict[str, npt.NDArray[np.int32]] = field(default_factory=dict)


def prepare(
    part: Slice, source: TextSource, engine: TextEngine, on_long: OnLong, chunking: Chunking | None
) -> Prepared:
    """Tokenise a slice's texts; null, empty and undecodable ones become dead letters.

    chunking: how texts are cut into chunks; None where they are not.
    """
    started = time.perf_counter()
    dead: Dead = {}
    texts = _good_texts(part, source, dead)
    truncated = 0
    spans = None
    if chunking is None:
        whole = _tokenise(texts, engine.tokenize, dead)
        truncated = _fit(whole, engine, on_long, dead)
        rows, ids = list(whole), list[Sequence[int]](whole.values())
    else:
        cut = partial(
            engine.tokenizer.windows,
            size=chunking.size(engine.context),
            overlap=chunking.overlap,
        )
        windows = _tokenise(texts, cut, dead)
        chunks = list(chain.from_iterable(windows.values()))
        rows = [row for row, of_row in windows.items() for _ in of_row]
        ids = [chunk.ids for chunk in chunks]
        spans = [(chunk.start, chunk.end) for chunk in chunks]
    return Prepared(
        slice=part,
        rows=rows,
        ids=ids,
        spans=spans,
        dead=_letters(part, dead),
        truncated=truncated,
        tokenise_s=time.perf_counter() - started,
    )


def _good_texts(part: Slice, source: TextSource, dead: Dead) -> dict[int, str]:
    texts: dict[int, str] = {}
    for row, text in enumerate(source.texts(part.batch)):
        if text is None:
            dead[row] = ("null", "")
        elif isinstance(text, UnicodeDecodeError):
            dead[row] = ("invalid_utf8", str(text))
        elif isinstance(text, UNREADABLE):
            dead[row] = ("unreadable_value", _explain(text))
        elif not text.strip():
            dead[row] = ("empty", "")
        else:
            texts[row] = text
    return texts


def _tokenise(
    texts: dict[int, str], run: Callable[[Sequence[str]], list[Tokens]], dead: Dead
) -> dict[int, Tokens]:
    tokens: dict[int, Tokens] = {}
    for rows in _groups(texts):
        for first, count, result in bisect(run, [texts[row] for row in rows]):
            if isinstance(result, Exception):
                dead[rows[first]] = ("tokenise_failed", _explain(result))
            else:
                tokens.update(zip(rows[first : first + count], result, strict=True))
    return tokens


def _groups(texts: dict[int, str]) -> Iterator[list[int]]:
    """Yield rows whose texts together are not long, unless one alone is."""
    group: list[int] = []
    characters = 0
    for row, text in texts.items():
        if group and characters + len(text) > GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
        group.append(row)
        characters += len(text)
    if group:
        yield group


def _fit(ids: dict[int, list[int]], engine: TextEngine, on_long: OnLong, dead: Dead) -> int:
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


def embed(
    prepared: Prepared,
    once: OnceEmbedder,
    dtype: VectorDtype,
    chunking: Chunking | None,
) -> Embedded:
    """Embed a slice. A row that the engine fails on, or whose vector is not finite, is dead.

    So is a row with such a chunk, whole.
    """
    started = time.perf_counter()
    vectors, errors = once.embed(prepared.ids)
    rows = np.asarray(prepared.rows, dtype=np.int64)
    dead: Dead = {}
    for index, error in errors.items():
        dead.setdefault(prepared.rows[index], ("engine_failed", _explain(error)))
    made: dict[str, npt.NDArray[np.int32]] = {}
    if prepared.spans is not None and chunking is not None:
        rows, vectors, made = _of_chunks(prepared, prepared.spans, vectors, once.engine, chunking)
    with np.errstate(over="ignore"):
        written: npt.NDArray[np.floating] = vectors.astype(dtype, copy=False)
    for row in rows[~np.isfinite(written).all(axis=1)].tolist():
        dead.setdefault(row, ("not_finite", f"the vector is not finite in {dtype}"))
    good = ~np.isin(rows, list(dead))
    return Embedded(
        slice=prepared.slice,
        rows=rows[good],
        vectors=written if good.all() else written[good],
        dead=_letters(prepared.slice, dead),
        tokens=sum(
            len(ids)
            for row, ids in zip(prepared.rows, prepared.ids, strict=True)
            if row not in dead
        ),
        forward_s=time.perf_counter() - started,
        input_rows=len(np.unique(rows[good])),
        made={name: values[good] for name, values in made.items()},
    )


def _of_chunks(
    prepared: Prepared,
    spans: list[tuple[int, int]],
    vectors: npt.NDArray[np.float32],
    engine: Engine,
    chunking: Chunking,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], dict[str, npt.NDArray[np.int32]]]:
    """Return the rows, vectors and further columns of chunks, or of what they are pooled to."""
    rows = np.asarray(prepared.rows, dtype=np.int64)
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    if chunking.pool is None:
        return rows, vectors, number_chunks(firsts, spans)
    around = engine.tokenizer.tokens_around
    own = np.array([max(1, len(ids) - around) for ids in prepared.ids], dtype=np.float32)
    pooled = pool_mean(vectors, own, firsts, engine.unit_length)
    counts = np.diff(firsts, append=len(rows)).astype(np.int32)
    return rows[firsts], pooled, {"chunks": counts}


def _letters(part: Slice, dead: Dead) -> list[DeadLetter]:
    return [
        DeadLetter(part.first_row + row, 1, reason, detail)
        for row, (reason, detail) in sorted(dead.items())
    ]


def _explain(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
