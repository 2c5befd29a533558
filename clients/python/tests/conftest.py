"""Servers and clients for the tests; no environment variable of the machine reaches them."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from omai_stub import SessionStub, SlowLogin, Stub, settle

import omai

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what a developer's machine may have set."""
    for name in list(os.environ):
        if name.startswith(("OMAI_", "OPENAI_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def stub() -> Iterator[Stub]:
    """Serve everybody."""
    yield from _serve(Stub())


@pytest.fixture
def sessions() -> Iterator[SessionStub]:
    """Serve one user who logs in, and whoever has a key."""
    yield from _serve(SessionStub())


@pytest.fixture
def slow_login() -> Iterator[SlowLogin]:
    """Do the same, but have a login take until the test lets it go on."""
    yield from _serve(SlowLogin())


def _serve(stub: Any) -> Iterator[Any]:
    thread = threading.Thread(target=stub.serve)
    thread.start()
    yield stub
    stub.stop()
    thread.join()


@pytest.fixture(params=[omai.OMAi, omai.AsyncOMAi])
def client_class(request: pytest.FixtureRequest) -> type[Any]:
    """Return either client: what holds of one holds of the other."""
    found: type[Any] = request.param
    return found


@pytest_asyncio.fixture
async def make(client_class: type[Any]) -> AsyncIterator[Make]:
    """Make clients of either class, and close them."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(client_class(**options))
        return made[-1]

    yield make
    for client in made:
        await settle(client.close())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long retries waited for: nothing really waits."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    for module, replaced in (("time", found.append), ("anyio", sleep)):
        target = f"openai._base_client.{module}"
        original = vars(import_module(module))
        monkeypatch.setattr(target, SimpleNamespace(**{**original, "sleep": replaced}))
    return found
