"""Write a unit's files so that a visible file is always whole: a local file first, then moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omai_ray.storage import Location
from pipelines.job import EMBEDDING_COLUMN, VectorDtype
from pipelines.read import DeadLetter
from pipelines.rows import Embedded

ROW_GROUP_ROWS = 8192
ROW_GROUP_BYTES = 64 << 20
DEAD_LETTERS = "_dead_letters"
DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64()),
        pa.field("rows", pa.int64()),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


def output_schema(
    schema: pa.Schema,
    columns: Sequence[str] | None,
    dimension: int,
    dtype: VectorDtype,
    provenance: dict[str, Any],
) -> pa.Schema:
    """Return the input's fields that are carried, `embedding`, and provenance as metadata.

    The input's own metadata is left out: it describes a table without the new column.
    """
    names = schema.names if columns is None else columns
    value_type = pa.float32() if dtype == "float32" else pa.float16()
    embedding = pa.field(EMBEDDING_COLUMN, pa.list_(value_type, dimension), nullable=False)
    metadata = {
        f"omai.{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for key, value in provenance.items()
    }
    return pa.schema([*(schema.field(name) for name in names), embedding], metadata=metadata)


def attach_vectors(embedded: Embedded, schema: pa.Schema) -> pa.RecordBatch:
    """Return a slice's kept rows with their vectors, the matrix used as it lies in memory."""
    batch = embedded.slice.batch
    if len(embedded.kept) != batch.num_rows:
        batch = batch.take(pa.array(embedded.kept, pa.int64()))
    kind = schema.field(EMBEDDING_COLUMN).type
    flat = pa.array(np.ascontiguousarray(embedded.vectors).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    columns = [batch.column(field.name) for field in schema if field.name != EMBEDDING_COLUMN]
    return pa.RecordBatch.from_arrays([*columns, vectors], schema=schema)


class UnitWriter:
    """Writes one unit's data file under a temporary name; nothing is visible before `commit`.

    output: the job's directory. name: the unit's file in it. scratch: a local directory that
    exists for as long as this run may write; on the output's filesystem where that is local.
    """

    def __init__(self, output: Location, name: str, scratch: Path, schema: pa.Schema) -> None:
        self._output, self._name, self._scratch = output, name, scratch
        self.schema = schema
        self._temporary = scratch / f"{uuid4().hex}.parquet"
        self._pending: list[pa.RecordBatch] = []
        self.rows = 0
        carried = [field.name for field in schema if field.name != EMBEDDING_COLUMN]
        self._writer = pq.ParquetWriter(
            self._temporary,
            schema,
            compression="zstd",
            use_dictionary=carried,
            write_statistics=carried,
            use_byte_stream_split=[f"{EMBEDDING_COLUMN}.list.element"],
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows; they reach the disk a row group at a time."""
        self._pending.append(batch)
        self.rows += batch.num_rows
        waiting = sum(pending.num_rows for pending in self._pending)
        size = sum(pending.nbytes for pending in self._pending)
        if waiting >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches(self._pending, schema=self.schema).combine_chunks()
        self._pending = []
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)

    def commit(self, file: str, dead: Sequence[DeadLetter]) -> int:
        """Make the unit's rows and dead letters visible; return the data file's bytes.

        The data file comes last: where it is, its dead letters are.
        """
        self._flush()
        self._writer.close()
        size = self._temporary.stat().st_size
        commit_dead_letters(self._output, self._name, self._scratch, file, dead)
        self._output.child(self._name).write_from(self._temporary)
        return size

    def abort(self) -> None:
        """Drop what was written; harmless after `commit`."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)


def commit_dead_letters(
    output: Location, name: str, scratch: Path, file: str, dead: Sequence[DeadLetter]
) -> None:
    """Write a unit's dead letters, or remove those that an earlier version of it left."""
    target = output.child(f"{DEAD_LETTERS}/{name}")
    if not dead:
        target.delete()
        return
    rows = [
        {"file": file, "row": d.row, "rows": d.rows, "reason": d.reason, "detail": d.detail}
        for d in dead
    ]
    temporary = scratch / f"{uuid4().hex}.dead"
    table = pa.Table.from_pylist(rows, schema=DEAD_LETTER_SCHEMA)
    pq.write_table(table, temporary, compression="zstd")
    target.write_from(temporary)


def write_json(place: Location, value: object) -> None:
    """Replace a JSON file as a whole."""
    place.write_bytes((json.dumps(value, indent=2) + "\n").encode())
