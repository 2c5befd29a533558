"""How processes share the tests; databases of either kind; what the faults' tests showed."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from omai_ray.priority import NICENESS_VARIABLE
from omai_ray.store import Store
from tests.databases import Postgres, run_postgres
from tests.fault_rows import outcome_of_rows
from tests.redis_server import run_redis

# Of tests/ray, those that start a Ray of their own, or none. The rest share one.
_OWN_RAY = frozenset(
    ["backends", "command", "haproxy", "monitoring", "multi_node", "reload", "restart", "retries"]
)
_SHARED_RAY = "tests/ray"


def _scope(nodeid: str) -> str:
    """Return what the tests are called that one process must run: a file, or all of one Ray."""
    file = nodeid.partition("::")[0]
    shared = file.startswith(f"{_SHARED_RAY}/")
    shared = shared and file not in {f"{_SHARED_RAY}/test_{name}.py" for name in _OWN_RAY}
    return _SHARED_RAY if shared else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each of several processes whole scopes to run; pytest 9.2 ignores xdist's groups."""
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run the tests, begin with those that take longest."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _scope(item.nodeid) != _SHARED_RAY)


# Hundreds of processes import the same modules: each would compile them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Tests compute beside engines that other tests wait for.
os.environ.setdefault(NICENESS_VARIABLE, "1")
_ROWS_OF = pytest.StashKey[dict[str, tuple[int, ...]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that prints a line for each fault."""
    parser.addoption("--fault-rows", action="store_true", help="tell what came of each fault")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which rows of the table of faults each test shows."""
    session.config.stash[_ROWS_OF] = {
        item.nodeid: tuple(row for mark in item.iter_markers("fault") for row in mark.args)
        for item in session.items
    }


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what came of each fault, where that was asked for."""
    if not config.getoption("--fault-rows"):
        return
    terminalreporter.section("faults")
    rows_of = config.stash[_ROWS_OF]
    outcomes = [
        (row, outcome)
        for outcome in ("passed", "failed", "error", "skipped")
        for report in terminalreporter.stats.get(outcome, [])
        for row in rows_of[report.nodeid]
    ]
    for line in outcome_of_rows(outcomes):
        terminalreporter.write_line(line)


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
