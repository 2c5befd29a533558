from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from omai_ray.files import Contents, Files
from omai_ray.store import Account, File, Purpose, Store
from omai_ray.store.tables import accounts

ADA, BOB = "acct_ada", "acct_bob"


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
def root(tmp_path: Path) -> Path:
    """Return the directory of all content."""
    return tmp_path / "files"


@pytest.fixture
async def files(store: Store, root: Path, clock: Clock) -> AsyncIterator[Files]:
    """Return the files of two accounts that have none yet."""
    async with store.writing() as connection:
        for account in (ADA, BOB):
            row = Account(account, account, "basic", "active", None, None, 1.0).row()
            await connection.execute(insert(accounts).values(**row))
    contents = Contents.at(str(root))
    yield Files(store, contents, clock)
    contents.close()


async def keep(
    files: Files,
    content: bytes = b"line\n",
    *,
    account: str = ADA,
    filename: str = "input.jsonl",
    purpose: Purpose = "batch",
    expires_after_s: float | None = None,
) -> File:
    """Upload a file."""
    async with files.uploading(account) as upload:
        await upload.write(content)
        return await upload.finish(filename, purpose, expires_after_s)


def names(root: Path) -> set[str]:
    """Return the names of all content that there is."""
    return {path.name for path in root.iterdir()}
