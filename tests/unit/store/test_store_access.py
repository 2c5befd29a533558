from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, IntegrityError

from omai_ray.errors import Overloaded, ServerError
from omai_ray.store import Store, engine
from omai_ray.store.tables import accounts, usage, users
from tests.databases import held

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
ACCOUNT = {"id": "acct_1", "name": "ada", "tier": "basic", "status": "active", "created": 1.0}
USER = {
    "id": "user_1",
    "name": "ada",
    "password_hash": "x",
    "account_id": "acct_none",
    "role": "owner",
    "created": 1.0,
}


async def count(store: Store) -> int:
    """Count the accounts."""
    async with store.reading() as connection:
        return len((await connection.execute(select(accounts))).all())


async def test_a_transaction_is_kept_whole(store: Store) -> None:
    """An error within it leaves nothing behind."""

    async def fail_halfway() -> None:
        async with store.writing() as connection:
            await connection.execute(insert(accounts).values(**ACCOUNT))
            raise KeyError

    with pytest.raises(KeyError):
        await fail_halfway()
    assert 0 == await count(store)

    async with store.writing() as connection:
        await connection.execute(insert(accounts).values(**ACCOUNT))
    assert 1 == await count(store)


@pytest.mark.parametrize(
    ("pragma", "expected"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)]
)
async def test_sqlite_is_durable_and_checks_references(
    url: str, pragma: str, expected: Any
) -> None:
    """FULL (2): a committed usage record survives a power failure."""
    store = await Store.open(url)
    async with store.reading() as connection:
        assert expected == await connection.scalar(text(f"PRAGMA {pragma}"))
    await store.close()


async def test_violated_constraints_reach_the_caller(store: Store) -> None:
    """It alone can say which name was taken."""
    with pytest.raises(IntegrityError):
        async with store.writing() as connection:
            await connection.execute(insert(users).values(**USER))


async def test_concurrent_writers_all_succeed(store: Store) -> None:
    """None sees the database locked by another, though each has read first."""

    async def write(number: int) -> None:
        async with store.writing() as connection:
            await connection.execute(select(accounts))
            row = ACCOUNT | {"id": f"acct_{number}", "name": f"n{number}"}
            await connection.execute(insert(accounts).values(**row))

    await asyncio.gather(*(write(number) for number in range(20)))

    assert 20 == await count(store)


async def test_a_held_database_is_overloaded_and_free_again(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for another's lock has an end on both; a statement given up keeps none itself."""
    monkeypatch.setattr("omai_ray.store.store.DEADLINE_S", 0.2)

    async def write() -> None:
        async with store.writing() as connection:
            await connection.execute(insert(accounts).values(**ACCOUNT))

    async with held(database_url):
        with pytest.raises(Overloaded):
            await write()
        assert 0 == await count(store)  # readers go on
    await write()
    assert 1 == await count(store)


async def test_a_locked_database_is_overloaded(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is told when to come back, and sees no SQL; the log has the cause."""
    monkeypatch.setattr("omai_ray.store.engine.BUSY_S", 0.01)
    store = await Store.open(url)
    holder = sqlite3.connect(url.partition("///")[2], isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(Overloaded) as caught:
            async with store.writing() as connection:
                await connection.execute(insert(accounts).values(**ACCOUNT))
        assert 0 == await count(store)  # readers go on
    finally:
        holder.close()

    assert "1" == caught.value.headers["Retry-After"]
    assert "INSERT" not in caught.value.message
    assert "database is locked" in caplog.text
    async with store.writing() as connection:
        await connection.execute(insert(accounts).values(**ACCOUNT))
    await store.close()


async def test_a_database_that_hangs_is_overloaded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline holds for whatever does not answer, and the connection is usable after."""
    monkeypatch.setattr("omai_ray.store.store.DEADLINE_S", 0.01)
    with pytest.raises(Overloaded):
        async with store.writing():
            await asyncio.Event().wait()
    monkeypatch.undo()

    assert 0 == await count(store)


def test_waits_within_a_database_end_before_the_deadline() -> None:
    """Only SQLite itself can end its wait for a lock, and callers get their 503 within 5 s."""
    assert engine.BUSY_S + engine.POOL_S < engine.DEADLINE_S <= 5.0 - engine.BUSY_S


async def test_a_defect_is_a_server_error_without_sql(store: Store) -> None:
    """A statement that cannot work says nothing about the schema to the client."""
    with pytest.raises(ServerError) as caught:
        async with store.reading() as connection:
            await connection.execute(select(text("1")).select_from(text("accounts, accounts, (")))

    assert "accounts" not in caught.value.message


async def test_errors_do_not_show_parameters(store: Store) -> None:
    """They may be hashes and macs."""
    with pytest.raises(IntegrityError) as caught:
        async with store.writing() as connection:
            await connection.execute(insert(users).values(**USER | {"password_hash": "canary"}))

    assert "canary" not in str(caught.value)


def test_new_rows_leave_existing_ones_alone_on_postgresql_too() -> None:
    """Both dialects have the clause, under different names in SQLAlchemy."""

    class Postgres:
        dialect = DIALECT

        def execution_options(self, **_: Any) -> Postgres:
            return self

    statement = Store(Postgres()).insert_new(usage)  # type: ignore[arg-type]

    assert "ON CONFLICT DO NOTHING" in str(statement.compile(dialect=DIALECT))


def test_these_packages_import_neither_torch_nor_ray_nor_fastapi() -> None:
    """They serve the command line, which must start at once."""
    root = Path(engine.__file__).parents[1]
    modules = [
        ".".join(("omai_ray", *path.relative_to(root).with_suffix("").parts))
        for package in ("store", "identity", "quota", "ledger")
        for path in sorted((root / package).glob("*.py"))
    ]
    code = (
        f"import sys\nfor name in {modules}: __import__(name)\n"
        "print(sorted({'torch', 'ray', 'fastapi', 'starlette', 'alembic'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )

    assert ("[]\n", "") == (output.stdout, output.stderr)


@pytest.mark.parametrize(
    ("state", "away"),
    [("57P03", True), ("53300", True), ("40P01", True), ("25006", True), ("42601", False)],
)
async def test_postgresql_says_by_its_code_whether_it_is_away(
    store: Store, state: str, away: bool
) -> None:
    """Starting, full, in a deadlock, not yet promoted: try again; a wrong statement is a defect."""

    class Told(Exception):
        sqlstate = state

    with pytest.raises(Overloaded if away else ServerError):
        async with store.reading():
            raise DBAPIError("SELECT", {}, Told("words"))
