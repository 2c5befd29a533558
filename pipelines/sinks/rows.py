"""A committed file's rows as a sink takes them: who they are, their plain columns, the vector."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from omai_ray.errors import ConfigError
from omai_ray.storage import Location
from pipelines.commit import DEAD_LETTERS
from pipelines.errors import RunFailed
from pipelines.job import EMBEDDING_COLUMN, digest
from pipelines.run_ledger import Entry
from pipelines.sinks.sink import FINGERPRINT

BATCH_ROWS = 256
BATCH_BYTES = 8 << 20
CHUNK_COLUMN = "chunk"
IDENTITY = pa.schema(
    [
        pa.field("omai_id", pa.string(), nullable=False),
        pa.field("omai_file", pa.string(), nullable=False),
        pa.field("omai_row", pa.int64(), nullable=False),
        pa.field("omai_chunk", pa.int32(), nullable=False),
        pa.field("omai_unit", pa.string(), nullable=False),
        pa.field("omai_version", pa.string(), nullable=False),
    ]
)
_NAMESPACE = UUID("5c1ff0a4-6c0e-5d53-9d43-5b8a2f0c7e11")  # of our own; ids depend on it
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def row_schema(outputs: Iterable[pa.Schema], fingerprint: str) -> pa.Schema:
    """Return a sink's columns: a row's identity, the plain columns of all outputs, the vector.

    Files may differ: a column that is missing in one is null there, number types are widened.
    Nested and binary columns stay in the parquet files. Raises ConfigError where a column is of
    types that have none in common, or has a name of the identity's.
    """
    carried = [
        pa.schema([_plain(field) for field in schema if _is_plain(field.type)])
        for schema in outputs
    ]
    vector = next(iter(outputs)).field(EMBEDDING_COLUMN)
    try:
        merged = pa.unify_schemas(carried, promote_options="permissive")
    except pa.ArrowException as error:
        raise ConfigError(
            f"the input's files do not fit into one table of a sink: {error}; "
            "name the columns to carry with --columns"
        ) from None
    taken = [name for name in merged.names if name in IDENTITY.names]
    if taken:
        raise ConfigError(
            f"the input has a column '{taken[0]}', a name that a sink needs for itself; name the "
            "columns to carry with --columns"
        )
    return pa.schema([*IDENTITY, *merged, vector], metadata={FINGERPRINT: fingerprint})


def _plain(field: pa.Field) -> pa.Field:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_string_view(kind):
        kind = pa.string()
    return pa.field(field.name, kind)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        _is_text,
        pa.types.is_boolean,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
        pa.types.is_date,
        pa.types.is_timestamp,
    )
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def has_chunks(metadata: Mapping[bytes, bytes]) -> bool:
    """Say whether a data file, by its footer, has a row for each chunk of a text."""
    chunking = json.loads(metadata.get(b"omai.chunking", b"null"))
    return chunking is not None and chunking["pool"] is None


def unit_id(corpus: str, unit: str) -> str:
    """Return what a sink calls a unit: the same for as long as the corpus and the cut are."""
    return digest([corpus, unit])[:32]


def row_id(corpus: str, file: str, row: int, chunk: int) -> str:
    """Return a row's id, a UUID: the same whichever unit or run the row comes from."""
    return str(uuid5(_NAMESPACE, f"{corpus}\n{file}\n{row}\n{chunk}"))


class CommittedUnit:
    """A unit's data file, as a sink reads it.

    output: the job's directory. entry: of its ledger. corpus: the job's source, so that several
    corpora can share a table. schema: of `row_schema`. rows: of the batches so far.
    """

    def __init__(self, output: Location, entry: Entry, corpus: str, schema: pa.Schema) -> None:
        self.id = unit_id(corpus, entry.output)
        self.version = digest([entry.key, entry.sha256])[:16]
        self.rows = 0
        self._output, self._name, self._corpus, self._schema = output, entry.output, corpus, schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, some at a time. Raises RunFailed where they do not add up."""
        self.rows = 0
        place = self._output.child(self._name)
        with place.open_input() as content, pq.ParquetFile(content) as file:
            metadata = file.schema_arrow.metadata
            source = metadata[b"omai.source_file"].decode()
            first, end = map(int, metadata[b"omai.source_rows"].split(b":"))
            kept = self._kept_rows(first, end)
            chunked = has_chunks(metadata)
            done = 0
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                chunks = _chunks(batch, chunked)
                places = done + np.cumsum(chunks == 0) - 1
                done += int((chunks == 0).sum())
                if done <= len(kept):
                    self.rows += batch.num_rows
                    yield from _portions(self._attach(batch, source, kept[places], chunks))
        if done != len(kept):
            raise RunFailed(
                f"{self._name} has {done} rows, and {len(kept)} of the input's are not "
                "dead-lettered; this is a defect, and the sink was not fed with it"
            )

    def _kept_rows(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """Return the input's row numbers of the rows that were written."""
        kept = np.ones(end - first, dtype=bool)
        letters = self._output.child(f"{DEAD_LETTERS}/{self._name}")
        if letters.exists():
            with letters.open_input() as content:
                table = pq.read_table(content, columns=["row", "rows"])
            for letter in table.to_pylist():
                start = letter["row"] - first
                kept[start : start + letter["rows"]] = False
        return first + np.flatnonzero(kept)

    def _attach(
        self,
        batch: pa.RecordBatch,
        source: str,
        rows: npt.NDArray[np.int64],
        chunks: npt.NDArray[np.int32],
    ) -> pa.RecordBatch:
        places = zip(rows.tolist(), chunks.tolist(), strict=True)
        identity: dict[str, Any] = {
            "omai_id": [row_id(self._corpus, source, row, chunk) for row, chunk in places],
            "omai_file": [source] * len(rows),
            "omai_row": rows,
            "omai_chunk": chunks,
            "omai_unit": [self.id] * len(rows),
            "omai_version": [self.version] * len(rows),
        }
        columns = []
        for field in self._schema:
            if field.name in identity:
                columns.append(pa.array(identity[field.name], field.type))
            elif field.name in batch.schema.names:
                columns.append(_cast(batch.column(field.name), field.type))
            else:
                columns.append(pa.nulls(len(rows), field.type))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)


def _portions(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield the rows again, in batches of at most BATCH_BYTES, or of one row that is larger."""
    if batch.num_rows < 2 or batch.nbytes <= BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _portions(batch.slice(0, half))
    yield from _portions(batch.slice(half))


def _chunks(batch: pa.RecordBatch, chunked: bool) -> npt.NDArray[np.int32]:
    if not chunked:
        return np.zeros(batch.num_rows, np.int32)
    numbers: npt.NDArray[np.int32] = batch.column(CHUNK_COLUMN).to_numpy().astype(np.int32)
    return numbers


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return a column in the sink's type. Readers do not check UTF-8; a sink's store would."""
    if column.type == kind and not _is_text(kind):
        return column
    plain = column.cast(kind)
    if not _is_text(kind):
        return plain
    try:
        plain.validate(full=True)
    except pa.ArrowInvalid:
        values = plain.cast(pa.large_binary()).to_pylist()
        texts = [None if value is None else value.decode(errors="replace") for value in values]
        return pa.array(texts, kind)
    return plain


def vectors(batch: pa.RecordBatch) -> npt.NDArray[np.floating]:
    """Return a batch's vectors, [rows, D]."""
    column = batch.column(EMBEDDING_COLUMN)
    flat: npt.NDArray[np.floating] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


def json_rows(batch: pa.RecordBatch, without: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the rows, apart from vectors, as JSON has them: no NaN, no NUL, dates in ISO 8601."""
    left_out = {EMBEDDING_COLUMN, *without}
    names = [name for name in batch.schema.names if name not in left_out]
    columns = [_json_values(batch.column(name)) for name in names]
    return [
        {name: values[row] for name, values in zip(names, columns, strict=True)}
        for row in range(batch.num_rows)
    ]


def _json_values(column: pa.Array) -> list[Any]:
    try:
        return [_json_value(value) for value in column.to_pylist()]
    except (OverflowError, ValueError):
        return [_json_scalar(value) for value in column]


def _json_scalar(value: pa.Scalar) -> Any:
    """Return a value; a time that Python does not have as Arrow writes it, null if it cannot."""
    try:
        return _json_value(value.as_py())
    except (OverflowError, ValueError):
        pass
    try:
        text = str(value.cast(pa.string()).as_py())
    except (ValueError, pa.ArrowException):
        return None
    return None if text.startswith("<") else text.replace(" ", "T", 1)


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", _REPLACEMENT)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date):  # a datetime is one too
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    return value
