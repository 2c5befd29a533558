from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from omai_ray.errors import ConfigError, Overloaded
from omai_ray.store import Store
from omai_ray.store.migrate import MIGRATIONS
from omai_ray.store.tables import REVISIONS, metadata

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
OPEN = """
import asyncio, sys
from omai_ray.store import Store
async def main():
    store = await Store.open(sys.argv[1])
    await store.close()
asyncio.run(main())
print("alembic" in sys.modules)
"""


def path_of(url: str) -> Path:
    """Return the file of a URL."""
    return Path(url.partition("///")[2])


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_migrations_build_exactly_the_tables_of_the_code(store: Store, url: str) -> None:
    """A table changed without its migration is found here, not in production."""
    engine = create_engine(f"sqlite:///{path_of(url)}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
    engine.dispose()

    assert [] == differences


def test_the_code_names_every_migration_in_order() -> None:
    """Opening compares with these names, without importing alembic."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config).walk_revisions()

    assert list(REVISIONS) == [script.revision for script in scripts][::-1]


def test_the_schema_compiles_for_postgresql() -> None:
    """The same tables serve both databases."""
    for table in metadata.sorted_tables:
        assert table.name in str(CreateTable(table).compile(dialect=DIALECT))


def test_processes_that_open_one_new_database_at_once_all_succeed(url: str) -> None:
    """One of them builds the schema, the others wait for it."""
    command = [sys.executable, "-W", "error", "-c", OPEN, url]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outcomes = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]

    assert [("", 0)] * 3 == outcomes


def test_opening_a_current_database_does_not_import_alembic(store: Store, url: str) -> None:
    """Every start but the first is fast."""
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", OPEN, url], capture_output=True, text=True, timeout=60
    )

    assert ("False\n", "") == (output.stdout, output.stderr)


async def test_tasks_that_open_one_new_database_at_once_all_succeed(url: str) -> None:
    """Replicas of one process may start together as well."""
    stores = await asyncio.gather(*(Store.open(url) for _ in range(4)))
    for store in stores:
        await store.close()


async def test_a_database_newer_than_the_code_is_refused(store: Store, url: str) -> None:
    """Older code would misread it."""
    async with store.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(ConfigError, match="9999, newer than this omai-ray"):
        await Store.open(url)


async def test_only_its_owner_can_read_the_database(store: Store, url: str) -> None:
    """Directory 0700; database, write-ahead log and shared memory 0600."""
    async with store.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
    files = list(path_of(url).parent.iterdir())

    assert {"omai.db", "omai.db-wal", "omai.db-shm"} == {path.name for path in files}
    assert [0o600] * 3 == [mode(path) for path in files]
    assert 0o700 == mode(path_of(url).parent)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("nonsense", "not an SQLAlchemy URL"),
        ("nosuch://host/db", "neither sqlite nor postgresql"),
        ("mysql://host/db", "neither sqlite nor postgresql"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("postgresql+nosuch://host/db", "driver of postgresql.nosuch is missing"),
        ("sqlite:////proc/nowhere/omai.db", "database /proc/nowhere/omai.db"),
    ],
)
async def test_an_unusable_url_is_a_configuration_error(bad: str, reason: str) -> None:
    """It says what is wrong, at start."""
    with pytest.raises(ConfigError, match=reason):
        await Store.open(bad)


async def test_a_file_that_is_no_database_is_a_configuration_error(tmp_path: Path) -> None:
    """It is not overwritten."""
    path = tmp_path / "omai.db"
    path.write_text("dear diary, " * 200)

    with pytest.raises(ConfigError, match="not a database"):
        await Store.open(f"sqlite:///{path}")
    assert "dear diary, " * 200 == path.read_text()


async def test_a_database_with_foreign_tables_is_a_configuration_error(tmp_path: Path) -> None:
    """Tables of the same names that no migration of ours made are not touched."""
    path = tmp_path / "omai.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE accounts (x)")
    connection.close()

    with pytest.raises(ConfigError, match="already exists"):
        await Store.open(f"sqlite:///{path}")


async def test_a_database_locked_throughout_is_overloaded_and_not_an_endless_start(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait at start has an end, too."""
    monkeypatch.setattr("omai_ray.store.engine.BUSY_S", 0.01)
    monkeypatch.setattr("omai_ray.store.store.OPEN_DEADLINE_S", 0.1)
    path_of(url).parent.mkdir()
    holder = sqlite3.connect(path_of(url), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(Overloaded):
            await Store.open(url)
    finally:
        holder.close()
