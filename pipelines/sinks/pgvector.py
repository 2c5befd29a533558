"""Rows in a PostgreSQL table with pgvector."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
import pyarrow as pa
from pgvector import HalfVector, Vector
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.types.json import Jsonb

from omai_ray.errors import ConfigError
from pipelines.job import EMBEDDING_COLUMN
from pipelines.sinks.rows import IDENTITY, json_rows, vectors
from pipelines.sinks.sink import FINGERPRINT, SinkTarget, check_model

CONNECT_TIMEOUT_S = 10
_COLUMNS = {
    "omai_id": "uuid",
    "omai_file": "text",
    "omai_row": "bigint",
    "omai_chunk": "integer",
    "omai_unit": "text",
    "omai_version": "text",
    "payload": "jsonb",
}


class PgvectorSink:
    """A unit is one transaction, on a connection of its own: the server may go in between.

    The input's columns are a row's `payload`, since files may differ in theirs.
    """

    def __init__(self, target: SinkTarget) -> None:
        self._target = target
        self._table = sql.Identifier(*target.name.split("."))
        self._conninfo = _without_table(target.uri)

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(self._conninfo, connect_timeout=CONNECT_TIMEOUT_S)

    def exists(self) -> bool:
        """Say whether the table is there."""
        with self._connect() as connection:
            return self._find(connection) is not None

    def _find(self, connection: psycopg.Connection) -> int | None:
        row = connection.execute(
            "SELECT to_regclass(%s)::oid::bigint", [self._table.as_string(connection)]
        ).fetchone()
        return row[0] if row else None

    def prepare(self, schema: pa.Schema) -> None:
        """Create the extension, the table and an index on its units, or compare the one there."""
        kind = schema.field(EMBEDDING_COLUMN).type
        self._half = pa.types.is_float16(kind.value_type)
        vector = f"{'halfvec' if self._half else 'vector'}({kind.list_size})"
        columns = _COLUMNS | {EMBEDDING_COLUMN: vector}
        with self._connect() as connection:
            self._require_extension(connection)
            found = self._find(connection)
            if found is None:
                self._create(connection, columns, schema.metadata[FINGERPRINT].decode())
            else:
                self._check(connection, found, columns, schema)

    def _require_extension(self, connection: psycopg.Connection) -> None:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
            raise ConfigError(
                f"sink {self._target.shown}: this PostgreSQL has no pgvector ({_first_line(error)})"
            ) from None
        except psycopg.errors.InsufficientPrivilege:
            raise ConfigError(
                f"sink {self._target.shown}: pgvector is not enabled in this database, and this "
                "user may not do it; have an administrator run CREATE EXTENSION vector"
            ) from None

    def _create(
        self, connection: psycopg.Connection, columns: dict[str, str], fingerprint: str
    ) -> None:
        fields = sql.SQL(", ").join(
            sql.SQL("{} {} NOT NULL").format(sql.Identifier(name), sql.SQL(kind))
            for name, kind in columns.items()
        )
        connection.execute(
            sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY (omai_id))").format(self._table, fields)
        )
        connection.execute(sql.SQL("CREATE INDEX ON {} (omai_unit)").format(self._table))
        comment = sql.Literal(f"{FINGERPRINT.decode()}={fingerprint}")
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(self._table, comment))

    def _check(
        self, connection: psycopg.Connection, table: int, columns: dict[str, str], schema: pa.Schema
    ) -> None:
        rows = connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped",
            [table],
        ).fetchall()
        found = dict(rows)
        wrong = {name: kind for name, kind in columns.items() if found.get(name) != kind}
        if wrong:
            have = ", ".join(f"{name} {found.get(name, '(missing)')}" for name in wrong)
            want = ", ".join(f"{name} {kind}" for name, kind in wrong.items())
            raise ConfigError(
                f"sink {self._target.shown} has {have} where this run writes {want}; name another "
                "table, or drop that one"
            )
        row = connection.execute("SELECT obj_description(%s, 'pg_class')", [table]).fetchone()
        name, _, fingerprint = ((row[0] if row else None) or "").partition("=")
        check_model(self._target, fingerprint if name == FINGERPRINT.decode() else None, schema)

    def put(self, unit: str, version: str, batches: Iterator[pa.RecordBatch]) -> None:
        """Copy a unit's rows to the server, upsert them, and delete what another version left."""
        names = [*_COLUMNS, EMBEDDING_COLUMN]
        with self._connect() as connection:
            register_vector(connection)
            connection.execute(
                sql.SQL("CREATE TEMPORARY TABLE fed (LIKE {}) ON COMMIT DROP").format(self._table)
            )
            self._copy(connection, batches)
            connection.execute(
                sql.SQL(
                    "INSERT INTO {} ({}) SELECT {} FROM fed ON CONFLICT (omai_id) DO UPDATE SET {}"
                ).format(
                    self._table,
                    _identifiers(names),
                    _identifiers(names),
                    sql.SQL(", ").join(
                        sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name))
                        for name in names[1:]
                    ),
                )
            )
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE omai_unit = %s AND omai_version <> %s").format(
                    self._table
                ),
                [unit, version],
            )

    def _copy(self, connection: psycopg.Connection, batches: Iterator[pa.RecordBatch]) -> None:
        kind = HalfVector if self._half else Vector
        types = [*_COLUMNS.values(), "halfvec" if self._half else "vector"]
        statement = sql.SQL("COPY fed ({}) FROM STDIN (FORMAT BINARY)").format(
            _identifiers([*_COLUMNS, EMBEDDING_COLUMN])
        )
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for batch in batches:
                identity = (batch.column(name).to_pylist() for name in IDENTITY.names)
                payloads = map(Jsonb, json_rows(batch, without=IDENTITY.names))
                embeddings = map(kind, vectors(batch))
                for row in zip(*identity, payloads, embeddings, strict=True):
                    copy.write_row(row)

    def remove(self, unit: str) -> None:
        """Delete a unit's rows."""
        with self._connect() as connection:
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE omai_unit = %s").format(self._table), [unit]
            )

    def close(self) -> None:
        """Nothing is held."""


def _without_table(uri: str) -> str:
    """Return what libpq reads: its own parameters stay, `table` is ours."""
    parts = urlsplit(uri)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name != "table"]
    return urlunsplit(parts._replace(query=urlencode(query)))


def _identifiers(names: list[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
