"""Bringing a database to the schema of this code.

A new database gets its schema at once; one that has data is changed only where an operator says so.
One that is already right costs one query; alembic is only imported to change one.
New revisions are modules `vNNNN_what.py` of `migrations/versions`, and named in
`tables.REVISIONS`; a test compares what they build with `tables.metadata`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import URL, Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from omai_ray.errors import ConfigError
from omai_ray.store.engine import WRITE_OPTION, create_engine
from omai_ray.store.tables import REVISIONS

MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x6F6D6169  # "omai"; any number that other users of the server do not use


async def read_revision(connection: AsyncConnection) -> str | None:
    """Return the schema's revision, None where there is none; raise ConfigError for a newer one."""
    revision = await connection.run_sync(_revision)
    if revision is not None and revision not in REVISIONS:
        raise ConfigError(
            f"the database is at schema {revision}, newer than this omai-ray "
            f"({REVISIONS[-1]}): upgrade omai-ray, or restore a backup of the older database"
        )
    return revision


async def upgrade(url: URL) -> None:
    """Bring the database to the last revision, in a thread: alembic is all blocking code."""
    await asyncio.to_thread(lambda: asyncio.run(_upgrade(url)))


async def _upgrade(url: URL) -> None:
    # A statement that rewrites a table may take its time.
    engine = create_engine(url, poolclass=NullPool, deadline_s=None)
    try:
        async with engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                # Kept by the file. It lets readers go on while one process writes.
                await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        async with engine.execution_options(**{WRITE_OPTION: True}).begin() as connection:
            await connection.run_sync(_upgrade_locked)
    finally:
        await engine.dispose()


def _upgrade_locked(connection: Connection) -> None:
    """Upgrade within a transaction that only one process can hold at a time."""
    from alembic import command
    from alembic.config import Config

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
