"""Read a unit in slices, so that memory does not grow with the file or its row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from omai_ray.storage import Location
from pipelines.errors import RunFailed
from pipelines.plan import Unit
from pipelines.source import open_parquet

SLICE_ROWS = 512
BUFFER_BYTES = 1 << 20
OBJECT_BUFFER_BYTES = 4 << 20  # each is a request


@dataclass(frozen=True)
class DeadLetter:
    """Rows that are not written, and why.

    row: the first one's index in its file, from 0; None where a whole file could not be opened.
    rows: how many follow each other for the same reason; None where that is unknown.
    """

    row: int | None
    rows: int | None
    reason: str
    detail: str


@dataclass(frozen=True)
class Slice:
    """Some rows of a unit, in order. first_row: index in the file, from 0."""

    first_row: int
    batch: pa.RecordBatch


@dataclass(frozen=True)
class _Window:
    """The part of a row group that belongs to a unit."""

    group: int
    skip: int
    rows: int
    first_row: int


class UnitReader:
    """An open unit: a context manager. columns: those to read; None reads all.

    Raises RunFailed where the file is not the one that was planned.
    """

    def __init__(self, unit: Unit, columns: Sequence[str] | None) -> None:
        self._unit = unit
        self._columns = None if columns is None else list(columns)
        place = Location.parse(unit.file.path)
        stat = place.stat()
        if stat is None or (stat.size, stat.mtime_ns) != (unit.file.size, unit.file.mtime_ns):
            raise RunFailed(f"{place} was changed while the job ran; run it again")
        self._file = open_parquet(
            place,
            buffer_size=BUFFER_BYTES if place.is_local else OBJECT_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
        self.schema: pa.Schema = self._file.schema_arrow

    def __enter__(self) -> UnitReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close(force=True)

    def slices(self) -> Iterator[Slice | DeadLetter]:
        """Yield the unit's rows in order; what cannot be decoded comes as a dead letter.

        Raises OSError or StorageError where the file, not its content, is at fault.
        """
        for window in self._windows():
            yield from self._read(window)

    def _windows(self) -> Iterator[_Window]:
        first, end = self._unit.first_row, self._unit.first_row + self._unit.rows
        group_first = 0
        for group in range(self._file.metadata.num_row_groups):
            group_end = group_first + self._file.metadata.row_group(group).num_rows
            low, high = max(first, group_first), min(end, group_end)
            if low < high:
                yield _Window(group, low - group_first, high - low, low)
            group_first = group_end

    def _read(self, window: _Window) -> Iterator[Slice | DeadLetter]:
        done, position, detail = 0, 0, "the row group ends before the footer says"
        try:
            for batch in self._batches(window.group):
                low = max(0, window.skip - position)
                position += batch.num_rows
                part = batch.slice(low, window.rows - done) if low < batch.num_rows else None
                if part is not None:
                    yield Slice(window.first_row + done, part)
                    done += part.num_rows
                if done == window.rows:
                    return
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None or isinstance(error, MemoryError):
                raise
            detail = str(error)
        yield DeadLetter(window.first_row + done, window.rows - done, "unreadable", detail)

    def _batches(self, group: int) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = self._file.iter_batches(
            SLICE_ROWS, row_groups=[group], columns=self._columns, use_threads=False
        )
        return batches
