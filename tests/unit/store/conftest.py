from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omai_ray.store import Store


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the URL of a database that is not there yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'state' / 'omai.db'}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """Open a new database."""
    opened = await Store.open(url)
    yield opened
    await opened.close()
