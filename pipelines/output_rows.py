"""The rows of a data file: the input's columns, those that are made here, and the vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.chunk import Chunking
from pipelines.job import EMBEDDING_COLUMN, VectorDtype
from pipelines.rows import Embedded

SOURCE_FILE, SOURCE_ROW = "source_file", "source_row"
# Of a row that is repeated for each of its chunks, and its text with it.
PORTION_BYTES = 16 << 20


def made_fields(chunking: Chunking | None, row_id: bool) -> list[pa.Field]:
    """Return the fields that the input has not, apart from the vectors, in their order."""
    fields = []
    if row_id:
        fields += [(SOURCE_FILE, pa.string()), (SOURCE_ROW, pa.int64())]
    if chunking is not None:
        whole = ["chunk", "chunk_start", "chunk_end"] if chunking.pool is None else ["chunks"]
        fields += [(name, pa.int32()) for name in whole]
    return [pa.field(name, kind, nullable=False) for name, kind in fields]


def output_schema(
    schema: pa.Schema,
    columns: Sequence[str] | None,
    made: Sequence[pa.Field],
    dimension: int,
    dtype: VectorDtype,
    provenance: dict[str, Any],
) -> pa.Schema:
    """Return the input's fields that are carried, those made, `embedding`; provenance as metadata.

    The input's own metadata is left out: it describes a table without the new columns.
    """
    names = schema.names if columns is None else columns
    value_type = pa.float32() if dtype == "float32" else pa.float16()
    embedding = pa.field(EMBEDDING_COLUMN, pa.list_(value_type, dimension), nullable=False)
    fields = [*(schema.field(name) for name in names), *made, embedding]
    return pa.schema(fields, metadata=footer_metadata(provenance))


def footer_metadata(provenance: dict[str, Any]) -> dict[str, str]:
    """Return provenance as a data file's footer has it."""
    return {
        f"omai.{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in provenance.items()
    }


def output_batches(
    embedded: Embedded, schema: pa.Schema, made: Sequence[pa.Field], file: str
) -> Iterator[pa.RecordBatch]:
    """Yield a slice's output rows, the matrix of vectors used as it lies in memory.

    file: name of the input file. A row's columns are repeated for each of its chunks, so rows
    come in portions of bounded size.
    """
    columns = {field.name: _made(embedded, field, file) for field in made}
    kind = schema.field(EMBEDDING_COLUMN).type
    flat = pa.array(np.ascontiguousarray(embedded.vectors).reshape(-1))
    columns[EMBEDDING_COLUMN] = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    batch, rows = embedded.slice.batch, embedded.rows
    carried = batch.select([name for name in schema.names if name not in columns])
    every = np.array_equal(rows, np.arange(batch.num_rows))
    for first, end in _portions(carried, rows):
        taken = pa.array(rows[first:end])
        arrays = [
            columns[name].slice(first, end - first)
            if name in columns
            else (carried.column(name) if every else carried.column(name).take(taken))
            for name in schema.names
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _made(embedded: Embedded, field: pa.Field, file: str) -> pa.Array:
    if field.name == SOURCE_FILE:
        return pa.repeat(pa.scalar(file, field.type), len(embedded.rows))
    if field.name == SOURCE_ROW:
        return pa.array(embedded.slice.first_row + embedded.rows, field.type)
    return pa.array(embedded.made[field.name], field.type)


def _portions(batch: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of output rows that together are not large, all of them in order."""
    if (np.diff(rows) > 0).all():  # none is repeated
        yield 0, len(rows)
        return
    first = size = 0
    copied = batch.select([i for i, kind in enumerate(batch.schema.types) if not _is_shared(kind)])
    weights = {row: copied.slice(row, 1).nbytes for row in np.unique(rows).tolist()}
    for end, row in enumerate(rows.tolist()):
        if end > first and size + weights[row] > PORTION_BYTES:
            yield first, end
            first, size = end, 0
        size += weights[row]
    yield first, len(rows)


def _is_shared(kind: pa.DataType) -> bool:
    """Say whether a value that is repeated is in memory once all the same."""
    views = (pa.types.is_string_view, pa.types.is_binary_view)
    return pa.types.is_dictionary(kind) or any(test(kind) for test in views)
