from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from omai_ray.identity.accounts import Accounts
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.passwords import Passwords
from omai_ray.identity.peppers import Peppers
from omai_ray.store import Store


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where one empty database is kept, to be copied."""
    return tmp_path_factory.mktemp("template") / "omai.db"


@pytest.fixture
async def store(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Store]:
    """Open a new database, whose locks are waited for only briefly."""
    monkeypatch.setattr("omai_ray.store.engine.BUSY_S", 0.01)
    await (await Store.open(f"sqlite:///{template}")).close()
    shutil.copy(template, tmp_path / "omai.db")
    opened = await Store.open(f"sqlite:///{tmp_path / 'omai.db'}")
    yield opened
    await opened.close()


@pytest.fixture
def peppers() -> Peppers:
    """Return one pepper."""
    return Peppers({1: b"p" * 32})


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    """Return a hasher that is cheap."""
    made = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    yield made
    made.close()


@pytest.fixture
def accounts(store: Store, peppers: Peppers, passwords: Passwords, clock: Clock) -> Accounts:
    """Return the accounts of the store."""
    return Accounts(store, peppers, ["basic", "pro"], passwords=passwords, clock=clock)


@pytest.fixture
async def authenticator(
    store: Store, peppers: Peppers, passwords: Passwords, clock: Clock
) -> AsyncIterator[Authenticator]:
    """Return an authenticator all of whose time is the clock's."""
    made = Authenticator(store, peppers, passwords=passwords, clock=clock, monotonic=clock)
    yield made
    await made.close()
