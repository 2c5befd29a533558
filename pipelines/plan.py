"""Units of work: deterministic row ranges of the input's files, from their footers alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from omai_ray.errors import ConfigError
from omai_ray.storage import Location
from pipelines.job import EMBEDDING_COLUMN, digest
from pipelines.source import InputFile, open_parquet
from pipelines.text_source import TextSource, is_scalar, is_text

FOOTER_THREADS = 8
OBJECT_FOOTER_THREADS = 32  # they wait for answers, not for a disk
SMALLEST_UNIT_ROWS = 256
LARGEST_UNIT_ROWS = 32_768
UNITS_WANTED = 64
_PART = re.compile(r"-part-\d{5,}-of-\d{5,}(?=(\.[^./]*)?$)")


@dataclass(frozen=True)
class Footer:
    """What a readable file says of itself. group_rows: rows of each row group, in order."""

    file: InputFile
    schema: pa.Schema
    group_rows: tuple[int, ...]

    @property
    def rows(self) -> int:
        """All rows of the file."""
        return sum(self.group_rows)


@dataclass(frozen=True)
class RejectedFile:
    """A file whose footer cannot be read, and why."""

    file: InputFile
    detail: str


@dataclass(frozen=True)
class Unit:
    """Rows first_row to first_row + rows of one file, done by one actor, committed as one file.

    output: name of the file to write, relative to the output directory.
    key: changes with whatever the output's bytes depend on.
    """

    file: InputFile
    first_row: int
    rows: int
    output: str
    key: str


def read_footers(files: Sequence[InputFile]) -> tuple[list[Footer], list[RejectedFile]]:
    """Read every footer; a corrupt one is returned as a rejected file.

    Raises ConfigError for a file that may not be read, or where no footer at all is good,
    StorageError for a store that does not answer.
    """
    local = Location.parse(files[0].path).is_local
    schemas: dict[bytes, pa.Schema] = {}
    with ThreadPoolExecutor(FOOTER_THREADS if local else OBJECT_FOOTER_THREADS) as pool:
        outcomes = list(pool.map(lambda file: _read_footer(file, schemas), files))
    footers = [outcome for outcome in outcomes if isinstance(outcome, Footer)]
    rejected = [outcome for outcome in outcomes if isinstance(outcome, RejectedFile)]
    if not footers:
        first = rejected[0]
        raise ConfigError(
            f"none of the {len(files)} input files can be read as parquet; "
            f"the first is {first.file.path}: {first.detail}"
        )
    return footers, rejected


def _read_footer(file: InputFile, schemas: dict[bytes, pa.Schema]) -> Footer | RejectedFile:
    """schemas: those seen so far, by their bytes; files of one corpus share a few."""
    try:
        with open_parquet(Location.parse(file.path)) as parquet:
            metadata = parquet.metadata
            groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
            schema = parquet.schema_arrow
            return Footer(file, schemas.setdefault(bytes(schema.serialize()), schema), groups)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ConfigError(f"{file.path}: {error.strerror or error}") from None
        return RejectedFile(file, str(error))


def check_columns(
    footers: Sequence[Footer],
    text: TextSource,
    columns: Sequence[str] | None,
    made: Sequence[str] = (),
) -> None:
    """Raise ConfigError, naming the file and its columns, where one is missing or of no use.

    made: names of columns that are written beside those of the input and the vectors.
    """
    for footer in footers:
        names = footer.schema.names
        for wanted in dict.fromkeys([*text.columns, *(columns or [])]):
            if wanted not in names:
                raise ConfigError(
                    f"{footer.file.path}: no column '{wanted}' (there are: {', '.join(names)})"
                )
        for column in text.columns:
            _check_text(footer, column, is_scalar if text.joined else is_text)
        carried = names if columns is None else columns
        taken = next((name for name in (*made, EMBEDDING_COLUMN) if name in carried), None)
        if taken is not None:
            raise ConfigError(
                f"{footer.file.path}: has a column '{taken}' already, the name of the "
                "one to be written; name the columns to carry with --columns"
            )


def _check_text(footer: Footer, column: str, usable: Callable[[pa.DataType], bool]) -> None:
    if footer.schema.names.count(column) > 1:
        raise ConfigError(f"{footer.file.path}: has the column '{column}' more than once")
    kind = footer.schema.field(column).type
    if not usable(kind):
        what = "text" if usable is is_text else "of single values"
        others = ", ".join(field.name for field in footer.schema if usable(field.type)) or "none"
        raise ConfigError(
            f"{footer.file.path}: column '{column}' is {kind}, not {what}; "
            f"{'text' if usable is is_text else 'such'} columns: {others}"
        )


def choose_unit_rows(total_rows: int) -> int:
    """Return most rows of a unit: some 64 units a corpus, none too small or too long to redo."""
    return min(LARGEST_UNIT_ROWS, max(SMALLEST_UNIT_ROWS, math.ceil(total_rows / UNITS_WANTED)))


def split_rows(group_rows: Sequence[int], unit_rows: int) -> Iterator[tuple[int, int]]:
    """Yield (first row, rows) of each unit of a file.

    Whole row groups are joined while they fit; a larger one is cut into near-equal parts. A file
    without rows is one unit, so that the output has it too.
    """
    start = joined = 0
    for rows in group_rows:
        if joined and joined + rows > unit_rows:
            yield start, joined
            start, joined = start + joined, 0
        if rows <= unit_rows:
            joined += rows
            continue
        parts = math.ceil(rows / unit_rows)
        for part in range(parts):
            size = rows // parts + (part < rows % parts)
            yield start, size
            start += size
    if joined or start == 0:
        yield start, joined


def plan_units(footers: Sequence[Footer], unit_rows: int, settings_digest: str) -> list[Unit]:
    """Return the units in input order. Raises ConfigError where two would write one file."""
    units = [unit for footer in footers for unit in _units_of(footer, unit_rows, settings_digest)]
    repeated = [name for name, n in Counter(unit.output for unit in units).items() if n > 1]
    if repeated:
        raise ConfigError(f"two inputs would be written as {repeated[0]}; rename one of them")
    return units


def _units_of(footer: Footer, unit_rows: int, settings_digest: str) -> Iterator[Unit]:
    ranges = list(split_rows(footer.group_rows, unit_rows))
    for part, (first_row, rows) in enumerate(ranges):
        identity = [*file_identity(footer.file), footer.schema.to_string(), first_row, rows]
        yield Unit(
            file=footer.file,
            first_row=first_row,
            rows=rows,
            output=_output_name(footer.file.name, part, len(ranges)),
            key=digest([settings_digest, *identity]),
        )


def file_identity(file: InputFile) -> list[str | int]:
    """Return what changes when a file is replaced."""
    return [file.name, file.size, file.mtime_ns]


def _output_name(name: str, part: int, parts: int) -> str:
    if parts == 1:
        return name
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}-part-{part:05d}-of-{parts:05d}{path.suffix}"))


def possible_sources(output: str) -> set[str]:
    """Return the input files whose unit may have this output name."""
    return {output, _PART.sub("", output)}
