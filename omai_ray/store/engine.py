"""Connecting to SQLite or PostgreSQL, each set up so that a stuck database is noticed in time."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from omai_ray.errors import ConfigError

DEADLINE_S = 3.0
"""A transaction that takes longer is given up, and its caller answered 503."""

BUSY_S = 1.5
"""How long SQLite itself waits for a lock. Nothing else can end that wait, so that a caller is
answered after DEADLINE_S + BUSY_S at the latest."""

POOL_S = 1.0
"""How long a caller waits for a connection to become free."""

CONNECT_S = 2.0
"""How long PostgreSQL may take to accept a connection."""

WRITE_OPTION = "omai_write"
# Its debug lines have statements' parameters: names that were typed, and hashes.
logging.getLogger("aiosqlite").setLevel(logging.INFO)
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


def parse_url(text: str) -> URL:
    """Return the URL with an async driver; raise ConfigError for what cannot be used."""
    try:
        url = make_url(text)
        url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        raise ConfigError(
            "database_url: not an SQLAlchemy URL (sqlite:// or postgresql://)"
        ) from None
    if backend not in _DRIVERS:
        raise ConfigError(f"database_url: '{backend}' is neither sqlite nor postgresql")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError("database_url: SQLite needs a file, because several processes share it")
    return url


def create_engine(
    url: URL, *, deadline_s: float | None = DEADLINE_S, **options: Any
) -> AsyncEngine:
    """Return an engine for `url`; raise ConfigError where its driver is not installed.

    deadline_s: what PostgreSQL allows a statement. The server itself must end one whose caller has
    given up, because its locks would outlive it.
    """
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        options["connect_args"] = _sqlite_arguments()
    else:
        timeout_ms = 0 if deadline_s is None else round(deadline_s * 1000)
        settings = {"application_name": "omai-ray", "statement_timeout": str(timeout_ms)}
        options["connect_args"] = {"timeout": CONNECT_S, "server_settings": settings}
    if "poolclass" not in options:
        options |= {"pool_size": 5, "max_overflow": 5, "pool_timeout": POOL_S}
        options["pool_pre_ping"] = not sqlite
    try:
        # hide_parameters: a logged error must not show a mac or a password's hash.
        engine = create_async_engine(url, hide_parameters=True, **options)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(
            f"database_url: the driver of {url.drivername} is missing: {error}"
        ) from None
    except (ArgumentError, TypeError) as error:
        raise ConfigError(f"database_url: {error}") from None
    if sqlite:
        _prepare(engine.sync_engine)
    return engine


def create_writer(url: URL) -> Engine | None:
    """Return an engine for whole transactions in a thread, None where there is no need of it."""
    if url.get_backend_name() != "sqlite":
        return None
    engine = sqlalchemy.create_engine(
        url.set(drivername="sqlite"), connect_args=_sqlite_arguments()
    )
    _prepare(engine)
    return engine


def _sqlite_arguments() -> dict[str, Any]:
    # isolation_level None: Python's sqlite3 begins no transactions of its own, see _begin.
    return {"timeout": BUSY_S, "isolation_level": None}


def _prepare(engine: Engine) -> None:
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)


def create_file(url: URL) -> None:
    """Create SQLite's directory (0700) and file (0600), where they are not there yet.

    SQLite gives its -wal and -shm files the mode of the database. Raises OSError.
    """
    if url.get_backend_name() != "sqlite" or url.database is None:
        return
    path = _path(url)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def is_there(url: URL) -> bool:
    """Whether SQLite's file exists; a server's database is taken to."""
    return url.get_backend_name() != "sqlite" or _path(url).exists()


def _path(url: URL) -> Path:
    return Path((url.database or "").removeprefix("file:").partition("?")[0])


def _set_pragmas(connection: Any, _record: Any) -> None:
    """Set what SQLite keeps per connection.

    synchronous FULL: in WAL mode NORMAL loses the last commits when the power fails. A usage
    record is money and a revoked key must stay revoked, so those commits have to be on disk; the
    other writes (a login, a key's last use once a minute) are too few for NORMAL to pay.
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin(connection: Connection) -> None:
    """Take the write lock at once where a transaction will write.

    A transaction that read first could not wait for that lock: SQLite would refuse it as stale.
    """
    if connection.get_execution_options().get(WRITE_OPTION):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
