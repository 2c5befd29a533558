from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from argon2 import PasswordHasher

from omai_ray.identity.administration import Administration
from omai_ray.identity.audit import AuditLog
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.passwords import Passwords
from omai_ray.identity.peppers import Peppers
from omai_ray.identity.registry import Registry
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


def _models() -> tuple[str, ...]:
    return "gpt", "ada-002"


@pytest.fixture
async def registry(
    store: Store, peppers: Peppers, passwords: Passwords, clock: Clock
) -> AsyncIterator[Registry]:
    """Return the registry of the store, whose time is the clock's."""
    audit = AuditLog(store, clock)
    yield Registry(store, audit, peppers, ("basic", "pro"), _models, passwords, clock)
    await audit.close()


@pytest.fixture
def admin(registry: Registry) -> Administration:
    """Return what may be done with it."""
    return Administration(registry)


@pytest.fixture
async def authenticator(registry: Registry, clock: Clock) -> AsyncIterator[Authenticator]:
    """Return an authenticator all of whose time is the clock's."""
    made = Authenticator(registry, monotonic=clock)
    yield made
    await made.close()
