"""Rows as the points of a Qdrant collection, on a server or in a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import pyarrow as pa
from qdrant_client import QdrantClient, models

from omai_ray.errors import ConfigError
from pipelines.job import EMBEDDING_COLUMN
from pipelines.sinks.rows import json_rows, vectors
from pipelines.sinks.sink import FINGERPRINT, SinkTarget, check_model

API_KEY_VARIABLE = "QDRANT_API_KEY"
TIMEOUT_S = 60
_FINGERPRINT = FINGERPRINT.decode()


class QdrantSink:
    """A unit's points are written, then those of its earlier versions deleted."""

    def __init__(self, target: SinkTarget) -> None:
        self._target, self._name = target, target.name
        self._local = target.directory is not None
        self._client = _connect(target)

    def exists(self) -> bool:
        """Say whether the collection is there."""
        return self._client.collection_exists(self._name)

    def prepare(self, schema: pa.Schema) -> None:
        """Create the collection, or compare the vectors of the one there."""
        kind = schema.field(EMBEDDING_COLUMN).type
        if self.exists():
            self._check(kind.list_size, schema)
            return
        half = pa.types.is_float16(kind.value_type)
        self._client.create_collection(
            self._name,
            vectors_config=models.VectorParams(
                size=kind.list_size,
                distance=models.Distance.COSINE,
                datatype=models.Datatype.FLOAT16 if half else models.Datatype.FLOAT32,
            ),
            metadata={_FINGERPRINT: schema.metadata[FINGERPRINT].decode()},
        )
        if not self._local:  # which scans, and warns that it does
            self._client.create_payload_index(
                self._name, "omai_unit", models.PayloadSchemaType.KEYWORD, wait=True
            )

    def _check(self, dimension: int, schema: pa.Schema) -> None:
        config = self._client.get_collection(self._name).config
        params = config.params.vectors
        wanted = f"one vector of {dimension} dimensions, cosine distance"
        if not isinstance(params, models.VectorParams):
            raise ConfigError(
                f"sink {self._target.shown} has named vectors, or none, and this run writes "
                f"{wanted}; name another collection, or delete that one"
            )
        if (params.size, params.distance) != (dimension, models.Distance.COSINE):
            raise ConfigError(
                f"sink {self._target.shown} has vectors of {params.size} dimensions, "
                f"{params.distance.lower()} distance, and this run writes {wanted}; name another "
                "collection, or delete that one"
            )
        check_model(self._target, (config.metadata or {}).get(_FINGERPRINT), schema)

    def put(self, unit: str, version: str, batches: Iterator[pa.RecordBatch]) -> None:
        """Upsert a unit's points, then delete those that another version left."""
        for batch in batches:
            points = models.Batch(
                ids=batch.column("omai_id").to_pylist(),
                vectors=vectors(batch).tolist(),
                payloads=json_rows(batch, without=["omai_id"]),
            )
            self._client.upsert(self._name, points, wait=True)
        self._delete(
            models.Filter(
                must=[_equals("omai_unit", unit)], must_not=[_equals("omai_version", version)]
            )
        )

    def remove(self, unit: str) -> None:
        """Delete a unit's points."""
        self._delete(models.Filter(must=[_equals("omai_unit", unit)]))

    def _delete(self, points: models.Filter) -> None:
        self._client.delete(self._name, models.FilterSelector(filter=points), wait=True)

    def close(self) -> None:
        """Let go of the directory, or the connections."""
        self._client.close()


def _connect(target: SinkTarget) -> QdrantClient:
    if target.directory is None:
        parts = urlsplit(target.uri)
        url = f"{parts.scheme.removeprefix('qdrant+')}://{parts.netloc}"
        key = os.environ.get(API_KEY_VARIABLE)
        return QdrantClient(url=url, api_key=key, timeout=TIMEOUT_S, check_compatibility=False)
    try:
        return QdrantClient(path=str(target.directory))
    except RuntimeError as error:  # its lock is held
        raise ConfigError(f"sink {target.shown}: {error}") from None


def _equals(field: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=field, match=models.MatchValue(value=value))
