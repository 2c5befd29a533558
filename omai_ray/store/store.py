"""The database, as one object: reads, writes, and errors that a client may see."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import cache
from typing import TypeVar

from sqlalchemy import URL, Engine, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from omai_ray.errors import ConfigError, Overloaded, ServerError
from omai_ray.store.batches import Batch, PostgresqlBatch, sqlite_batch
from omai_ray.store.engine import (
    BUSY_S,
    DEADLINE_S,
    WRITE_OPTION,
    create_engine,
    create_file,
    create_writer,
    is_there,
    parse_url,
)
from omai_ray.store.migrate import read_revision, upgrade
from omai_ray.store.tables import REVISIONS

OPEN_DEADLINE_S = 10.0
REMOTE_PATIENCE_S = 0.2
_RETRY_S = 0.05
_SQLITE_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
# Classes of SQLSTATE: connection, authorization, rollback (deadlock), resources, an operator's
# doing, system; and a standby that is read-only yet, a missing right, a missing table.
_POSTGRESQL_AWAY = ("08", "28", "40", "53", "57", "58", "25006", "42501", "42P01")
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Store:
    """An open database at the current schema; made by `Store.open`."""

    def __init__(self, engine: AsyncEngine, writer: Engine | None = None) -> None:
        self._engine = engine
        self._writer = writer
        self._writing = engine.execution_options(**{WRITE_OPTION: True})
        # SQLite has one writer. Waiting here is fair and prompt; its own lock is polled.
        self._turn: AbstractAsyncContextManager[None] = (
            asyncio.Lock() if engine.dialect.name == "sqlite" else nullcontext()
        )

    @classmethod
    async def open(cls, url: str, *, upgrading: bool = False) -> Store:
        """Connect, and build the schema in an empty database.

        Several processes may do so at once. upgrading: bring an older schema up to date, which
        otherwise is a ConfigError, as is a URL, path or schema that cannot be used. Raises
        Overloaded where the database is locked or away.
        """
        parsed = parse_url(url)
        try:
            await asyncio.to_thread(create_file, parsed)
        except OSError as error:
            raise ConfigError(f"database {parsed.database}: {error.strerror or error}") from None
        engine = create_engine(parsed)
        try:
            await _bring_up_to_date(engine, parsed, upgrading)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine, create_writer(parsed))

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()
        if self._writer is not None:
            await asyncio.to_thread(self._writer.dispose)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection to read with, within DEADLINE_S; raise Overloaded past it."""
        async with _translated(), self._engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection within a transaction, committed at the end, within DEADLINE_S.

        Raises IntegrityError for the caller to explain, Overloaded when the database is away.
        """
        async with _translated(), self._turn, self._writing.begin() as connection:
            yield connection

    async def write(self, work: Callable[[Batch], Result]) -> Result:
        """Return what `work` does in a transaction, committed at its end; errors as `writing`'s.

        On SQLite all of it is done in one thread: `writing` crosses to its thread and back for
        every call of the driver, a score for an INSERT. What is given up for its deadline may be
        committed all the same.
        """
        writer = self._writer
        if writer is None:
            async with self.writing() as connection:
                return await connection.run_sync(lambda sync: work(PostgresqlBatch(sync)))

        def transaction() -> Result:
            with sqlite_batch(writer) as batch:
                return work(batch)

        async with _translated(), self._turn:
            return await asyncio.to_thread(transaction)

    @property
    def patience_s(self) -> float:
        """How long a request may wait to learn who sends it.

        A server behind a network may be gone without a word; a file answers, or is locked and says
        so.
        """
        return DEADLINE_S + BUSY_S if self._engine.dialect.name == "sqlite" else REMOTE_PATIENCE_S

    def insert_new(self, table: Table) -> Insert:
        """Return an INSERT that leaves rows alone whose primary key is already there."""
        return _insert_new(self._engine.dialect.name, table)


@cache  # to build it takes longer than to run it
def _insert_new(dialect: str, table: Table) -> Insert:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing()


async def schema_of(url: str) -> str | None:
    """Return the revision of a database's schema, None where it has none.

    Raises ConfigError for a URL that cannot be used, and for a schema newer than this code.
    """
    parsed = parse_url(url)
    if not await asyncio.to_thread(is_there, parsed):
        return None
    engine = create_engine(parsed)
    try:
        async with _translated(), engine.connect() as connection:
            return await read_revision(connection)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Turn the database's errors into ours. Clients never see SQL; the log sees the cause."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield
    except IntegrityError:
        raise
    except (SQLAlchemyError, sqlite3.Error, TimeoutError, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        _log.error("database: %s: %s", type(cause).__name__, cause)
        if _is_away(error):
            raise overloaded() from None
        raise ServerError("The server had an error while processing your request.") from None


def is_storable(text: str) -> bool:
    """Whether a database can hold a text, and so know it: PostgreSQL takes no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def overloaded() -> Overloaded:
    """Return the error for a database that is locked or away."""
    return Overloaded(
        "The server is temporarily unable to reach its database. Please try again.",
    )


def _is_away(error: Exception) -> bool:
    """Whether the database, not the statement, is at fault."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    if state is not None and state.startswith(_POSTGRESQL_AWAY):
        return True
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_AWAY  # SQLite calls everything operational
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(
        error, OperationalError | InterfaceError | PoolTimeout | TimeoutError | OSError
    )


async def _bring_up_to_date(engine: AsyncEngine, url: URL, upgrading: bool) -> None:
    """Try until another process, opening the same new file, lets go of it."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + OPEN_DEADLINE_S
    while True:
        try:
            async with engine.connect() as connection:
                revision = await read_revision(connection)
            if revision == REVISIONS[-1]:
                return
            if revision is not None and not upgrading:
                raise ConfigError(
                    f"{_shown(url)}: its schema is {revision}, and this omai-ray needs "
                    f"{REVISIONS[-1]}: make a backup, then run 'omai-ray db upgrade'"
                )
            await upgrade(url)
            await engine.dispose()  # connections from before WAL mode
            return
        except (SQLAlchemyError, OSError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if not _is_away(error) or "unable to open" in str(cause):
                raise ConfigError(f"{_shown(url)}: cannot be used: {cause}") from None
            if loop.time() > deadline_s:
                _log.error("database: %s: %s", type(cause).__name__, cause)
                raise overloaded() from None
        await asyncio.sleep(_RETRY_S)


def _shown(url: URL) -> str:
    return f"database {url.render_as_string(hide_password=True)}"
