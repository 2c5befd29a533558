"""Rows in a PostgreSQL table with pgvector."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import pgvector.asyncpg
import pyarrow as pa

from omai_ray.errors import ConfigError
from pipelines.job import EMBEDDING_COLUMN
from pipelines.sinks.rows import IDENTITY, json_rows, vectors
from pipelines.sinks.sink import FINGERPRINT, SinkTarget, check_model

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 600.0  # of one statement for a unit's rows; an index on the vectors is slow
_COLUMNS = {
    "omai_id": "uuid",
    "omai_file": "text",
    "omai_row": "bigint",
    "omai_chunk": "integer",
    "omai_unit": "text",
    "omai_version": "text",
    "payload": "jsonb",
}
_NAMES = [*_COLUMNS, EMBEDDING_COLUMN]


class PgvectorSink:
    """A unit is one transaction, on a connection of its own: the server may go in between.

    The input's columns are a row's `payload`, since files may differ in theirs.
    """

    def __init__(self, target: SinkTarget) -> None:
        self._target = target
        self._table = ".".join(map(_quote, target.name.split(".")))
        self._dsn = _without_table(target.uri)

    def exists(self) -> bool:
        """Say whether the table is there."""
        return asyncio.run(self._exists())

    def prepare(self, schema: pa.Schema) -> None:
        """Create the extension, the table and an index on its units, or compare the one there."""
        asyncio.run(self._prepare(schema))

    def put(self, unit: str, version: str, batches: Iterator[pa.RecordBatch]) -> None:
        """Copy a unit's rows to the server, upsert them, and delete what another version left."""
        asyncio.run(self._put(unit, version, batches))

    def remove(self, unit: str) -> None:
        """Delete a unit's rows."""
        asyncio.run(self._remove(unit))

    def close(self) -> None:
        """Nothing is held."""

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        connection = await asyncpg.connect(
            self._dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S
        )
        try:
            async with connection.transaction():
                yield connection
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_S)

    async def _exists(self) -> bool:
        async with self._transaction() as connection:
            return await self._find(connection) is not None

    async def _find(self, connection: Any) -> int | None:
        found: int | None = await connection.fetchval(
            "SELECT to_regclass($1)::oid::bigint", self._table
        )
        return found

    async def _prepare(self, schema: pa.Schema) -> None:
        kind = schema.field(EMBEDDING_COLUMN).type
        vector = "halfvec" if pa.types.is_float16(kind.value_type) else "vector"
        columns = _COLUMNS | {EMBEDDING_COLUMN: f"{vector}({kind.list_size})"}
        async with self._transaction() as connection:
            await self._require_extension(connection)
            found = await self._find(connection)
            if found is None:
                await self._create(connection, columns, schema.metadata[FINGERPRINT].decode())
            else:
                await self._check(connection, found, columns, schema)

    async def _require_extension(self, connection: Any) -> None:
        try:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except (asyncpg.FeatureNotSupportedError, asyncpg.UndefinedFileError):
            raise ConfigError(
                f"sink {self._target.shown}: this PostgreSQL has no pgvector; install it there"
            ) from None
        except asyncpg.InsufficientPrivilegeError:
            raise ConfigError(
                f"sink {self._target.shown}: pgvector is not enabled in this database, and this "
                "user may not do it; have an administrator run CREATE EXTENSION vector"
            ) from None

    async def _create(self, connection: Any, columns: dict[str, str], fingerprint: str) -> None:
        fields = ", ".join(f"{_quote(name)} {kind} NOT NULL" for name, kind in columns.items())
        comment = f"'{FINGERPRINT.decode()}={fingerprint}'"
        await connection.execute(
            f"CREATE TABLE {self._table} ({fields}, PRIMARY KEY (omai_id));"
            f"CREATE INDEX ON {self._table} (omai_unit);"
            f"COMMENT ON TABLE {self._table} IS {comment}"
        )

    async def _check(
        self, connection: Any, table: int, columns: dict[str, str], schema: pa.Schema
    ) -> None:
        rows = await connection.fetch(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = $1::bigint::oid AND attnum > 0 AND NOT attisdropped",
            table,
        )
        found: dict[str, str] = dict(rows)
        wrong = {name: kind for name, kind in columns.items() if found.get(name) != kind}
        if wrong:
            have = ", ".join(f"{name} {found.get(name, '(missing)')}" for name in wrong)
            want = ", ".join(f"{name} {kind}" for name, kind in wrong.items())
            raise ConfigError(
                f"sink {self._target.shown} has {have} where this run writes {want}; name another "
                "table, or drop that one"
            )
        comment = await connection.fetchval(
            "SELECT obj_description($1::bigint::oid, 'pg_class')", table
        )
        name, _, fingerprint = (comment or "").partition("=")
        check_model(self._target, fingerprint if name == FINGERPRINT.decode() else None, schema)

    async def _put(self, unit: str, version: str, batches: Iterator[pa.RecordBatch]) -> None:
        names = ", ".join(map(_quote, _NAMES))
        replaced = ", ".join(f"{name} = EXCLUDED.{name}" for name in map(_quote, _NAMES[1:]))
        async with self._transaction() as connection:
            await pgvector.asyncpg.register_vector(connection)
            await connection.execute(
                f"CREATE TEMPORARY TABLE omai_fed (LIKE {self._table}) ON COMMIT DROP"
            )
            for batch in batches:
                await connection.copy_records_to_table(
                    "omai_fed", records=_records(batch), columns=_NAMES
                )
            await connection.execute(
                f"INSERT INTO {self._table} ({names}) SELECT {names} FROM omai_fed "  # noqa: S608
                f"ON CONFLICT (omai_id) DO UPDATE SET {replaced}"
            )
            await connection.execute(
                f"DELETE FROM {self._table} WHERE omai_unit = $1 "  # noqa: S608
                "AND omai_version <> $2",
                unit,
                version,
            )

    async def _remove(self, unit: str) -> None:
        async with self._transaction() as connection:
            await connection.execute(
                f"DELETE FROM {self._table} WHERE omai_unit = $1",  # noqa: S608
                unit,
            )


def _records(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    identity = (batch.column(name).to_pylist() for name in IDENTITY.names)
    payloads = map(json.dumps, json_rows(batch, without=IDENTITY.names))
    return zip(*identity, payloads, vectors(batch), strict=True)


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _without_table(uri: str) -> str:
    """Return what the driver reads: its own parameters stay, `table` is ours."""
    parts = urlsplit(uri)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name != "table"]
    return urlunsplit(parts._replace(query=urlencode(query)))
