"""Do one unit of work: read, tokenise ahead, embed, write, commit, count."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from omai_ray.storage import Location
from pipelines.chunk import Chunking
from pipelines.commit import UnitWriter
from pipelines.dedup import OnceEmbedder
from pipelines.engine import Engine
from pipelines.errors import RunFailed
from pipelines.job import OnLong, VectorDtype
from pipelines.output_rows import made_fields, output_batches, output_schema
from pipelines.plan import Unit
from pipelines.read import DeadLetter, Slice, UnitReader
from pipelines.rows import Embedded, Prepared, embed, prepare
from pipelines.text_source import TextSource
from pipelines.vector_cache import VectorCache

SLICES_AHEAD = 2
LENGTH_BINS = 24

Item = TypeVar("Item")
Report = Callable[[int, int, int], None]


@dataclass(frozen=True)
class UnitSettings:
    """What every unit of a job shares.

    scratch: where files are made; None is a directory of the worker's own, for an object store.
    claim: an object that is there for as long as this run may write; None is a lock's to keep.
    chunking: how texts are cut into chunks; None where they are not. cache: a file for the model's
    vectors. fingerprint: of the engine that every worker must have; provenance, what it is made of,
    goes to the data files' footers.
    """

    output: Location
    scratch: Path | None
    claim: Location | None
    text: TextSource
    columns: tuple[str, ...] | None
    on_long: OnLong
    chunking: Chunking | None
    row_id: bool
    cache: Path | None
    dtype: VectorDtype
    fingerprint: str
    provenance: dict[str, Any]


@dataclass
class UnitResult:
    """What became of a unit; durations in seconds, started and ended as time.time().

    source, first_row: whose rows they are, and from which on. rows, written, dead: of the input.
    output_rows: of the data file, one for each chunk where texts are cut. tokens: of all that was
    written. deduplicated: texts, or chunks, that were not computed, as their vectors were known.
    forward_tokens, computed_tokens: what the engine was run on, without and with padding. lengths:
    texts, or chunks, by their tokens, the n-th those of 2^n up to 2^(n+1). worker: the actor that
    did it.
    """

    output: str
    key: str
    source: str = ""
    first_row: int = 0
    rows: int = 0
    written: int = 0
    output_rows: int = 0
    dead: int = 0
    truncated: int = 0
    deduplicated: int = 0
    tokens: int = 0
    forward_tokens: int = 0
    computed_tokens: int = 0
    lengths: list[int] = field(default_factory=lambda: [0] * LENGTH_BINS)
    bytes: int = 0
    sha256: str = ""
    reasons: dict[str, int] = field(default_factory=dict)
    read_s: float = 0.0
    tokenise_s: float = 0.0
    forward_s: float = 0.0
    write_s: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    worker: str = ""


@dataclass
class _Tally:
    """What the producing thread measured; read by the consumer once that thread has ended."""

    read_s: float = 0.0
    dead: list[DeadLetter] = field(default_factory=list)


def process_unit(unit: Unit, settings: UnitSettings, engine: Engine, report: Report) -> UnitResult:
    """Embed a unit's rows and commit its file.

    report(rows, tokens, dead rows) is called with the unit's running totals after each slice.
    Raises RunFailed where the counts do not balance or the input changed, StorageError or OSError
    for the store or the disk.
    """
    result = UnitResult(
        unit.output, unit.key, unit.file.name, unit.first_row, unit.rows, started=time.time()
    )
    before = engine.tokens, engine.computed_tokens
    columns = _columns_to_read(settings)
    with UnitReader(unit, columns) as reader, _scratch(settings) as scratch:
        rows = f"{unit.first_row}:{unit.first_row + unit.rows}"
        provenance = {**settings.provenance, "source_file": unit.file.name, "source_rows": rows}
        made = made_fields(settings.chunking, settings.row_id)
        schema = output_schema(
            reader.schema, settings.columns, made, engine.dimension, settings.dtype, provenance
        )
        writer = UnitWriter(settings.output, unit.output, scratch, schema)

        def write(embedded: Embedded) -> None:
            for batch in output_batches(embedded, schema, made, unit.file.name):
                writer.write(batch)

        try:
            with _open_cache(settings) as cache:
                once = OnceEmbedder(engine, cache)
                dead = _embed_slices(reader, write, settings, once, result, report)
            _check_balance(unit, result, writer.rows, dead)
            _check_claim(settings)
            with _Stopwatch(result, "write_s"):
                result.bytes, result.sha256 = writer.commit(unit.file.name, dead)
        finally:
            writer.abort()
    result.deduplicated = once.reused
    result.dead = sum(letter.rows or 0 for letter in dead)
    result.reasons = _count_reasons(dead)
    result.forward_tokens = engine.tokens - before[0]
    result.computed_tokens = engine.computed_tokens - before[1]
    result.ended = time.time()
    return result


@contextmanager
def _scratch(settings: UnitSettings) -> Iterator[Path]:
    if settings.scratch is not None:
        yield settings.scratch
        return
    with TemporaryDirectory(prefix="omai-bulk-") as directory:
        yield Path(directory)


def _check_claim(settings: UnitSettings) -> None:
    """Raise RunFailed in a worker that outlived its run: another may write there by now."""
    if settings.claim is not None and not settings.claim.exists():
        raise RunFailed(f"output {settings.output} is no longer this run's; nothing was committed")


def _columns_to_read(settings: UnitSettings) -> list[str] | None:
    if settings.columns is None:
        return None
    return list(dict.fromkeys([*settings.columns, *settings.text.columns]))


def _open_cache(settings: UnitSettings) -> AbstractContextManager[VectorCache | None]:
    return nullcontext() if settings.cache is None else VectorCache(settings.cache)


def _embed_slices(
    reader: UnitReader,
    write: Callable[[Embedded], None],
    settings: UnitSettings,
    once: OnceEmbedder,
    result: UnitResult,
    report: Report,
) -> list[DeadLetter]:
    """Embed and write every slice, adding to result; return the dead letters in row order."""
    tally = _Tally()
    dead: list[DeadLetter] = []
    prepared = _prepare_slices(reader, settings, once.engine, tally)
    for part in ahead(prepared, SLICES_AHEAD):
        embedded = embed(part, once, settings.dtype, settings.chunking)
        dead += [*part.dead, *embedded.dead]
        with _Stopwatch(result, "write_s"):
            write(embedded)
        result.written += embedded.input_rows
        result.output_rows += len(embedded.rows)
        result.truncated += part.truncated
        result.tokens += embedded.tokens
        for ids in part.ids:
            result.lengths[min(len(ids).bit_length(), LENGTH_BINS) - 1] += 1
        result.tokenise_s += part.tokenise_s
        result.forward_s += embedded.forward_s
        lost = sum(letter.rows or 0 for letter in dead)
        report(result.written + lost, result.tokens, lost)
    result.read_s = tally.read_s
    return sorted([*dead, *tally.dead], key=lambda letter: letter.row or 0)


def _prepare_slices(
    reader: UnitReader, settings: UnitSettings, engine: Engine, tally: _Tally
) -> Iterator[Prepared]:
    slices = reader.slices()
    while True:
        started = time.perf_counter()
        part = next(slices, None)
        tally.read_s += time.perf_counter() - started
        if part is None:
            return
        if isinstance(part, Slice):
            yield prepare(part, settings.text, engine, settings.on_long, settings.chunking)
        else:
            tally.dead.append(part)


def _check_balance(unit: Unit, result: UnitResult, in_file: int, dead: list[DeadLetter]) -> None:
    written, lost = result.written, sum(letter.rows or 0 for letter in dead)
    if written + lost != unit.rows or in_file != result.output_rows:
        raise RunFailed(
            f"{unit.output}: {unit.rows} rows were read, {written} written and {lost} "
            f"dead-lettered, with {in_file} of {result.output_rows} rows in the file; "
            "this is a defect, and the unit was not committed"
        )


def _count_reasons(dead: list[DeadLetter]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for letter in dead:
        counts[letter.reason] += letter.rows or 0
    return dict(sorted(counts.items()))


class _Stopwatch:
    """Adds the seconds that its block took to a field of the result."""

    def __init__(self, result: UnitResult, name: str) -> None:
        self._result, self._name = result, name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        taken = time.perf_counter() - self._started
        setattr(self._result, self._name, getattr(self._result, self._name) + taken)


def ahead(items: Iterator[Item], depth: int) -> Iterator[Item]:
    """Yield items that one thread makes ahead of their use, at most `depth` waiting.

    The producer's exception is raised here, in its place among the items.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting: deque[Future[Item | None]] = deque()
        for _ in range(depth):
            waiting.append(pool.submit(next, items, None))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
