"""Rows in a Lance table, a directory of files."""

from __future__ import annotations

from collections.abc import Iterator

import lance
import pyarrow as pa

from omai_ray.errors import ConfigError
from pipelines.sinks.sink import FINGERPRINT, SinkTarget, check_model


class LanceSink:
    """A unit is one version of the table: its rows are replaced, and its old ones go, at once."""

    def __init__(self, target: SinkTarget) -> None:
        self._target = target
        self._path = str(target.directory)

    def exists(self) -> bool:
        """Say whether the directory holds a table."""
        return (self._target.directory / "_versions").is_dir() if self._target.directory else False

    def prepare(self, schema: pa.Schema) -> None:
        """Create the table, or compare the columns of the one there."""
        self._schema = schema
        if not self.exists():
            lance.write_dataset(schema.empty_table(), self._path, mode="create")
            return
        found = lance.dataset(self._path).schema
        if _describe(found) != _describe(schema):
            raise ConfigError(
                f"sink {self._target.shown} has the columns {_differing(found, schema)} where this "
                f"run writes {_differing(schema, found)}; name another table, or delete that one"
            )
        fingerprint = (found.metadata or {}).get(FINGERPRINT)
        check_model(self._target, fingerprint.decode() if fingerprint else None, schema)

    def put(self, unit: str, version: str, batches: Iterator[pa.RecordBatch]) -> None:
        """Merge a unit's rows in one transaction."""
        merge = lance.dataset(self._path).merge_insert("omai_id")
        merge.when_matched_update_all().when_not_matched_insert_all()
        merge.when_not_matched_by_source_delete(f"omai_unit = '{unit}'")
        merge.execute(pa.RecordBatchReader.from_batches(self._schema, batches))

    def remove(self, unit: str) -> None:
        """Delete a unit's rows."""
        lance.dataset(self._path).delete(f"omai_unit = '{unit}'")

    def close(self) -> None:
        """Nothing is held."""


def _describe(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}


def _differing(schema: pa.Schema, other: pa.Schema) -> str:
    """Name a schema's columns that another does not have, or has in another type."""
    theirs = _describe(other)
    differing = {n: kind for n, kind in _describe(schema).items() if theirs.get(n) != kind}
    return ", ".join(f"{name} {kind}" for name, kind in differing.items()) or "(none)"
