"""Read an output again, and compare it with what its records say was committed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from omai_ray.errors import ConfigError
from omai_ray.storage import Location, ObjectNotFound, StorageError
from pipelines.commit import DEAD_LETTERS, ROW_GROUP_ROWS, hash_file
from pipelines.job import EMBEDDING_COLUMN, FORMAT_VERSION
from pipelines.output_rows import footer_metadata
from pipelines.read import BUFFER_BYTES
from pipelines.run_lease import RUN
from pipelines.run_ledger import Entry
from pipelines.run_record import SCRATCH, SUCCESS, RunRecord
from pipelines.strays import find_strays

THREADS = 4
# float16 rounds each part of a vector by at most 2^-11 of it, so its length by no more.
NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Defect:
    """What is wrong with a file. file: relative to the output."""

    file: str
    problem: str


@dataclass
class Verification:
    """What an output holds, by its ledger, and what is wrong with it."""

    output: str
    files: int = 0
    bytes: int = 0
    rows_written: int = 0
    rows_dead: int = 0
    defects: list[Defect] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.defects

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return asdict(self) | {"ok": self.ok}


def verify(output: str | os.PathLike[str]) -> Verification:
    """Check every file of an output that no run is at work in; nothing is written.

    Raises ConfigError where there is no run, or one of another format, OutputMismatch where its
    records are damaged.
    """
    record = RunRecord(output, mend=False)
    if record.manifest is None:
        raise ConfigError(f"{record.output} holds no run of `omai-ray embed`")
    version = record.manifest["settings"].get("format_version")
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{record.output} was written in format {version}, and this release reads format "
            f"{FORMAT_VERSION}; verify it with the release that wrote it"
        )
    entries = list(record.entries.values())
    check = partial(_check_entry, record.output, record.manifest["provenance"])
    with ThreadPoolExecutor(THREADS) as pool:
        defects = [defect for found in pool.map(check, entries) for defect in found]
    defects += _foreign(record, entries)
    defects += [Defect(SUCCESS, problem) for problem in _check_complete(record)]
    return Verification(
        output=str(record.output),
        files=sum(entry.bytes is not None for entry in entries),
        bytes=sum(entry.bytes or 0 for entry in entries),
        rows_written=sum(entry.written for entry in entries),
        rows_dead=sum(entry.dead for entry in entries),
        defects=defects,
    )


def _check_entry(output: Location, provenance: dict[str, Any], entry: Entry) -> list[Defect]:
    letters = f"{DEAD_LETTERS}/{entry.output}"
    checks = [(letters, _check_dead_letters(output.child(letters), entry))]
    if entry.bytes is not None:
        checks.append((entry.output, _check_data(output.child(entry.output), entry, provenance)))
    return [Defect(file, problem) for file, problems in checks for problem in _safely(problems)]


def _safely(problems: Iterator[str]) -> Iterator[str]:
    """Yield problems; a file that cannot be read is one."""
    try:
        yield from problems
    except (pa.ArrowException, OSError, StorageError) as error:
        yield f"cannot be read: {error}"


def _check_data(place: Location, entry: Entry, provenance: dict[str, Any]) -> Iterator[str]:
    stat = place.stat()
    if stat is None:
        yield "is missing"
        return
    if stat.size != entry.bytes:
        yield f"has {stat.size:,} bytes; {entry.bytes:,} were committed"
        return
    with place.open_input() as content:
        if hash_file(content) != entry.sha256:
            yield "its bytes are not those that were committed (SHA-256)"
        content.seek(0)
        with pq.ParquetFile(content, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet:
            yield from _check_footer(parquet, entry, provenance)
            yield from _check_vectors(parquet, provenance["dimension"], provenance["unit_length"])


def _check_footer(
    parquet: pq.ParquetFile, entry: Entry, provenance: dict[str, Any]
) -> Iterator[str]:
    rows = f"{entry.first_row}:{entry.first_row + entry.rows}"
    expected = {**provenance, "source_file": entry.source, "source_rows": rows}
    found = parquet.schema_arrow.metadata or {}
    for key, value in footer_metadata(expected).items():
        stated = found.get(key.encode(), b"nothing").decode(errors="replace")
        if stated != value:
            yield f"its footer says {key} {stated}; the run has {value}"
    if parquet.metadata.num_rows != entry.output_rows:
        yield f"has {parquet.metadata.num_rows:,} rows; {entry.output_rows:,} were committed"


def _check_vectors(parquet: pq.ParquetFile, dimension: int, unit_length: bool) -> Iterator[str]:
    """Look at every vector, a row group's part at a time."""
    if EMBEDDING_COLUMN not in parquet.schema_arrow.names:
        yield f"has no column '{EMBEDDING_COLUMN}'"
        return
    kind = parquet.schema_arrow.field(EMBEDDING_COLUMN).type
    if not pa.types.is_fixed_size_list(kind) or kind.list_size != dimension:
        yield f"its vectors are {kind}; the model's have {dimension} dimensions"
        return
    bad: dict[str, list[int]] = {"is null": [], "is not finite": [], "has not the length 1": []}
    first = 0
    for batch in parquet.iter_batches(ROW_GROUP_ROWS, columns=[EMBEDDING_COLUMN]):
        present = batch.column(0).is_valid().to_numpy(zero_copy_only=False)
        flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
        vectors: npt.NDArray[np.float32] = flat.reshape(-1, dimension).astype(np.float32)
        rows = first + np.flatnonzero(present)
        finite = np.isfinite(vectors).all(axis=1)
        lengths = np.linalg.norm(vectors[finite], axis=1)
        bad["is null"] += (first + np.flatnonzero(~present)).tolist()
        bad["is not finite"] += rows[~finite].tolist()
        if unit_length:
            off = np.abs(lengths - 1) > NORM_TOLERANCE
            bad["has not the length 1"] += rows[finite][off].tolist()
        first += len(present)
    for problem, found in bad.items():
        if found:
            yield f"the vector of row {found[0]} {problem} ({len(found):,} such rows)"


def _check_dead_letters(place: Location, entry: Entry) -> Iterator[str]:
    expected = Counter(entry.reasons)
    if not entry.dead and not entry.dead_files:
        if place.exists():
            yield "there are dead letters; none were committed"
        return
    try:
        with place.open_input() as content:
            table = pq.read_table(content, columns=["reason", "rows"]).to_pylist()
    except ObjectNotFound:
        yield "is missing"
        return
    found: Counter[str] = Counter()
    for letter in table:
        found[letter["reason"]] += letter["rows"] or 0
    files = sum(letter["rows"] is None for letter in table)
    if +found != +expected or files != entry.dead_files:
        yield (
            f"has {_listed(found)} and {files} files; {_listed(expected)} and "
            f"{entry.dead_files} files were committed"
        )


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted((+reasons).items())) or "no rows"


def _foreign(record: RunRecord, entries: list[Entry]) -> Iterator[Defect]:
    """Yield files that no unit has: readers would take them for data, unless a dot hides them."""
    known = {entry.output for entry in entries if entry.bytes is not None}
    known |= {f"{DEAD_LETTERS}/{entry.output}" for entry in entries}
    foreign = [
        name
        for name in (stat.name for stat in record.output.list())
        if name not in known
        and name.partition("/")[0] not in (RUN, SCRATCH, SUCCESS)
        and not name.rpartition("/")[2].startswith(".")
    ]
    strays = {entry.output for entry in find_strays(record, ())} if foreign else set()
    for name in foreign:
        if name.removeprefix(f"{DEAD_LETTERS}/") in strays:
            yield Defect(name, "is the run's, which ended before it was noted")
        else:
            yield Defect(name, "no run wrote this file")


def _check_complete(record: RunRecord) -> Iterator[str]:
    files = (record.manifest or {})["files"]
    planned = sum(file.get("rows", 0) for file in files)
    counted = sum(entry.rows for entry in record.entries.values())
    try:
        success = json.loads(record.output.child(SUCCESS).read_bytes())
    except ObjectNotFound:
        if counted < planned:
            yield (
                f"is missing: {counted:,} of {planned:,} rows are accounted for; the command that "
                "began the run goes on with it"
            )
        else:
            yield "is missing: more rows or files than --max-dead are dead-lettered"
        return
    except ValueError as error:
        yield f"is damaged: {error}"
        return
    if not planned == counted == success.get("total_rows"):
        yield (
            f"says {success.get('total_rows')} rows; the manifest has {planned}, the ledger "
            f"{counted}"
        )
