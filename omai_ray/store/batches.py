"""Plain rows by statements compiled once: what a transaction costs that is done all the time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Insert, String, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import asyncpg

Row = tuple[Any, ...]
_SQLITE = sqlite.dialect()
_POSTGRESQL = asyncpg.dialect()  # type: ignore[no-untyped-call]


class Batch(Protocol):
    """A transaction on one database. Rows have a value for each column, in the table's order."""

    def insert_new(self, table: Table, rows: Sequence[Row]) -> set[Any]:
        """Insert rows whose first column, the primary key, is not there yet; return these keys."""

    def insert_sums(self, table: Table, rows: Sequence[Row]) -> None:
        """Insert rows, and add to those whose primary key is there.

        Rows must be in the keys' order: two transactions may otherwise wait for each other.
        """


@dataclass(frozen=True, slots=True)
class SqliteBatch:
    """A transaction on the driver's own connection."""

    connection: sqlite3.Connection

    def insert_new(self, table: Table, rows: Sequence[Row]) -> set[Any]:
        """See Batch."""
        execute, statement = self.connection.execute, _sqlite_new(table)
        return {row[0] for row in rows if execute(statement, row).rowcount}

    def insert_sums(self, table: Table, rows: Sequence[Row]) -> None:
        """See Batch."""
        self.connection.executemany(_sqlite_sums(table), rows)


@dataclass(frozen=True, slots=True)
class PostgresqlBatch:
    """A transaction on SQLAlchemy's connection, its statements the driver's."""

    connection: Connection

    def insert_new(self, table: Table, rows: Sequence[Row]) -> set[Any]:
        """See Batch."""
        columns = tuple(list(column) for column in zip(*rows, strict=True))
        return set(self.connection.exec_driver_sql(_postgresql_new(table), columns).scalars())

    def insert_sums(self, table: Table, rows: Sequence[Row]) -> None:
        """See Batch."""
        self.connection.exec_driver_sql(_postgresql_sums(table), list(rows))


@contextmanager
def sqlite_batch(engine: Engine) -> Iterator[SqliteBatch]:
    """Give a transaction that is committed at the end; errors are the driver's."""
    pooled = engine.raw_connection()
    try:
        connection: Any = pooled.driver_connection
        connection.execute("BEGIN IMMEDIATE")
        yield SqliteBatch(connection)
        connection.execute("COMMIT")
    finally:
        pooled.close()  # which rolls back what is still open


@cache
def _sqlite_new(table: Table) -> str:
    return str(sqlite.insert(table).on_conflict_do_nothing().compile(dialect=_SQLITE))


@cache
def _sqlite_sums(table: Table) -> str:
    return str(_adding(sqlite.insert(table)).compile(dialect=_SQLITE))


@cache
def _postgresql_new(table: Table) -> str:
    """Return an INSERT whose parameters are a list for each column: one statement, one answer."""
    names = ", ".join(column.name for column in table.c)
    lists = ", ".join(
        # text: a cast to varchar(n) would cut what is too long
        f"${number}::{'text' if isinstance(c.type, String) else c.type.compile(_POSTGRESQL)}[]"
        for number, c in enumerate(table.c, 1)
    )
    return (
        f"INSERT INTO {table.name} ({names}) SELECT * FROM unnest({lists}) "  # noqa: S608 - our names
        f"ON CONFLICT DO NOTHING RETURNING {next(iter(table.c)).name}"
    )


@cache
def _postgresql_sums(table: Table) -> str:
    return str(_adding(postgresql.insert(table)).compile(dialect=_POSTGRESQL))


def _adding(insert: postgresql.Insert | sqlite.Insert) -> Insert:
    table = insert.table
    sums = {c.name: c + insert.excluded[c.name] for c in table.c if not c.primary_key}
    return insert.on_conflict_do_update(index_elements=table.primary_key, set_=sums)
