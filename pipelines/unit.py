"""Do one unit of work: read, tokenise ahead, embed, write, commit, count."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from omai_ray.storage import Location
from pipelines.commit import UnitWriter, attach_vectors, output_schema
from pipelines.engine import Engine
from pipelines.errors import RunFailed
from pipelines.job import OnLong, VectorDtype
from pipelines.plan import Unit
from pipelines.read import DeadLetter, Slice, UnitReader
from pipelines.rows import Prepared, embed, prepare

SLICES_AHEAD = 2

Item = TypeVar("Item")
Report = Callable[[int, int, int], None]


@dataclass(frozen=True)
class UnitSettings:
    """What every unit of a job shares. provenance goes to the data files' footers.

    scratch: where files are made; None is a directory of the worker's own, for an object store.
    claim: an object that is there for as long as this run may write; None is a lock's to keep.
    """

    output: Location
    scratch: Path | None
    claim: Location | None
    column: str
    columns: tuple[str, ...] | None
    on_long: OnLong
    dtype: VectorDtype
    provenance: dict[str, Any]


@dataclass
class UnitResult:
    """What became of a unit; durations in seconds, started and ended as time.time()."""

    output: str
    key: str
    rows: int = 0
    written: int = 0
    dead: int = 0
    truncated: int = 0
    tokens: int = 0
    bytes: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    read_s: float = 0.0
    tokenise_s: float = 0.0
    forward_s: float = 0.0
    write_s: float = 0.0
    started: float = 0.0
    ended: float = 0.0


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
    result = UnitResult(unit.output, unit.key, rows=unit.rows, started=time.time())
    columns = _columns_to_read(settings)
    with UnitReader(unit, columns) as reader, _scratch(settings) as scratch:
        rows = f"{unit.first_row}:{unit.first_row + unit.rows}"
        provenance = {**settings.provenance, "source_file": unit.file.name, "source_rows": rows}
        schema = output_schema(
            reader.schema, settings.columns, engine.dimension, settings.dtype, provenance
        )
        writer = UnitWriter(settings.output, unit.output, scratch, schema)
        try:
            dead = _embed_slices(reader, writer, settings, engine, result, report)
            _check_balance(unit, writer.rows, dead)
            _check_claim(settings)
            with _Stopwatch(result, "write_s"):
                result.bytes = writer.commit(unit.file.name, dead)
        finally:
            writer.abort()
    result.written, result.dead = writer.rows, sum(letter.rows or 0 for letter in dead)
    result.reasons = _count_reasons(dead)
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
    return list(dict.fromkeys([*settings.columns, settings.column]))


def _embed_slices(
    reader: UnitReader,
    writer: UnitWriter,
    settings: UnitSettings,
    engine: Engine,
    result: UnitResult,
    report: Report,
) -> list[DeadLetter]:
    """Embed and write every slice, adding to result; return the dead letters in row order."""
    tally = _Tally()
    dead: list[DeadLetter] = []
    prepared = _prepare_slices(reader, settings, engine, tally)
    for part in ahead(prepared, SLICES_AHEAD):
        embedded = embed(part, engine, settings.dtype)
        dead += [*part.dead, *embedded.dead]
        with _Stopwatch(result, "write_s"):
            writer.write(attach_vectors(embedded, writer.schema))
        result.truncated += part.truncated
        result.tokens += embedded.tokens
        result.tokenise_s += part.tokenise_s
        result.forward_s += embedded.forward_s
        lost = sum(letter.rows or 0 for letter in dead)
        report(writer.rows + lost, result.tokens, lost)
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
            yield prepare(part, settings.column, engine, settings.on_long)
        else:
            tally.dead.append(part)


def _check_balance(unit: Unit, written: int, dead: list[DeadLetter]) -> None:
    lost = sum(letter.rows or 0 for letter in dead)
    if written + lost != unit.rows:
        raise RunFailed(
            f"{unit.output}: {unit.rows} rows were read, {written} written and {lost} "
            "dead-lettered; this is a defect, and the unit was not committed"
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
