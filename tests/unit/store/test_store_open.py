from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from omai_ray.errors import ConfigError, Overloaded
from omai_ray.store import Store
from omai_ray.store.engine import create_engine, parse_url
from omai_ray.store.migrate import MIGRATIONS
from omai_ray.store.store import schema_of
from omai_ray.store.tables import REVISIONS, accounts, api_keys, metadata, usage_hours, usage_months
from tests.databases import Postgres

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


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """Open a new SQLite database."""
    opened = await Store.open(url)
    yield opened
    await opened.close()


def path_of(url: str) -> Path:
    """Return the file of a URL."""
    return Path(url.partition("///")[2])


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


async def test_migrations_build_exactly_the_tables_of_the_code(database_url: str) -> None:
    """A table changed without its migration is found here, not in production."""

    def compare(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(
            compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        )

    engine = create_engine(parse_url(database_url))
    async with engine.connect() as connection:
        differences = await connection.run_sync(compare)
    await engine.dispose()

    assert [] == differences


async def test_an_older_database_is_upgraded_only_where_that_is_asked_for(
    old_database: str,
) -> None:
    """The error says how; what it holds is kept, and added up."""
    assert "0001" == await schema_of(old_database)
    with pytest.raises(ConfigError, match=r"its schema is 0001.* run 'omai-ray db upgrade'"):
        await Store.open(old_database)

    store = await Store.open(old_database, upgrading=True)
    async with store.reading() as connection:
        (account,) = (await connection.execute(select(accounts))).mappings()
        (key,) = (await connection.execute(select(api_keys))).mappings()
        months = (await connection.execute(select(usage_months))).all()
        hours = (await connection.execute(select(usage_hours))).all()
    await store.close()

    assert ("ada", None, None) == (account["name"], account["monthly_tokens"], account["models"])
    assert ("k1", "member", None) == (key["id"], key["role"], key["models"])
    assert [("acct_1", "2026-10", 1, 5), ("acct_1", "2026-11", 2, 30)] == sorted(months)
    assert [
        ("acct_1", 1_793_487_600, "m", "", 1, 5, 0, 0, 0.0),
        ("acct_1", 1_793_491_200, "m", "", 2, 30, 0, 0, 0.0),
    ] == sorted(hours)
    assert REVISIONS[-1] == await schema_of(old_database)


async def test_an_upgrade_can_be_taken_back(old_database: str) -> None:
    """Down and up again leaves what the first revision holds."""
    await (await Store.open(old_database, upgrading=True)).close()
    await migrated(old_database, "0001", command.downgrade)
    assert "0001" == await schema_of(old_database)
    await (await Store.open(old_database, upgrading=True)).close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def old_database(request: pytest.FixtureRequest, url: str) -> AsyncIterator[str]:
    """Give a database of the first revision, with a row of each kind."""
    if request.param == "sqlite":
        path_of(url).parent.mkdir()
        await migrated(url, "0001", command.upgrade)
        await fill(url)
        yield url
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    async with postgres.database(empty=True) as empty:
        await migrated(empty, "0001", command.upgrade)
        await fill(empty)
        yield empty


async def migrated(url: str, revision: str, verb: Callable[[Config, str], None]) -> None:
    """Bring a database to a revision."""

    def run(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        verb(config, revision)

    engine = create_engine(parse_url(url))
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


async def fill(url: str) -> None:
    """Insert rows as the first revision has them."""
    november_s = 1_793_491_200.0  # 2026-11-01T00:00:00Z
    statements = [
        "INSERT INTO accounts VALUES ('acct_1', 'ada', 'basic', 'active', 1.0)",
        "INSERT INTO api_keys VALUES ('k1', 'acct_1', 'n', '1234', 'm', 1, 1.0, NULL, NULL, NULL)",
        *(
            f"INSERT INTO usage VALUES ('r{number}', 'acct_1', NULL, 'm', '/', 200, {tokens}, 0, "
            f"0, {started}, 1, NULL)"
            for number, tokens, started in (
                (1, 5, november_s - 1),
                (2, 10, november_s),
                (3, 20, november_s + 100),
            )
        ),
    ]
    engine = create_engine(parse_url(url))
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


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
