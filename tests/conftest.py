"""Databases of either kind, for tests that must hold on both."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from omai_ray.store import Store
from tests.databases import Postgres, run_postgres
from tests.redis_server import run_redis


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server for the session."""
    with run_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Run a Redis server for the session."""
    with run_redis() as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where one empty database is kept, to be copied."""
    return tmp_path_factory.mktemp("template") / "omai.db"


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(
    request: pytest.FixtureRequest, sqlite_template: Path, tmp_path: Path
) -> AsyncIterator[str]:
    """Return the URL of a new database with the schema, of each kind in turn."""
    if request.param == "sqlite":
        await (await Store.open(f"sqlite:///{sqlite_template}")).close()
        shutil.copy(sqlite_template, tmp_path / "omai.db")
        yield f"sqlite:///{tmp_path / 'omai.db'}"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    async with postgres.database() as url:
        yield url


@pytest.fixture
async def store(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """Open a new database: SQLite's locks are waited for only briefly, a busy server for long."""
    monkeypatch.setattr("omai_ray.store.engine.BUSY_S", 0.01)
    monkeypatch.setattr("omai_ray.store.store.REMOTE_PATIENCE_S", 60.0)
    opened = await Store.open(database_url)
    yield opened
    await opened.close()
