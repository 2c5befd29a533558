from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omai_ray.store import Store


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """Open a new database, whose locks are waited for only briefly."""
    monkeypatch.setattr("omai_ray.store.engine.BUSY_S", 0.01)
    opened = await Store.open(f"sqlite:///{tmp_path / 'omai.db'}")
    yield opened
    await opened.close()
