from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from omai_ray.errors import Overloaded
from omai_ray.files import Contents, Files
from omai_ray.files.contents import CHUNK_BYTES
from omai_ray.files.names import file_id
from omai_ray.store import Account, Store
from omai_ray.store.tables import accounts
from tests.s3_server import S3Server, s3_server
from tests.unit.files.conftest import ADA, Clock, keep

MIB = 2**20
BUCKET = "vault"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """Run an S3 server with one bucket."""
    with s3_server(BUCKET) as running:
        yield running


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Return the URL of a new database; which kind it is makes no difference here."""
    return f"sqlite:///{tmp_path / 'omai.db'}"


@pytest.fixture
async def files(
    server: S3Server, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Files]:
    """Return the files of an account, kept in the bucket, of which few retries are made."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    async with store.writing() as connection:
        row = Account(ADA, ADA, "basic", "active", None, None, 1.0).row()
        await connection.execute(insert(accounts).values(**row))
    contents = Contents.at(f"s3://{BUCKET}/kept?endpoint_override={server.endpoint}&max_attempts=2")
    yield Files(store, contents, clock)
    contents.close()
    server.buckets[BUCKET].clear()
    server.faults.clear()


def objects(server: S3Server) -> set[str]:
    """Return the keys of all objects."""
    return {key for key, stored in server.buckets[BUCKET].items() if not key.endswith("/")}


async def test_files_are_kept_in_a_bucket(files: Files, server: S3Server) -> None:
    """Uploaded in parts, read in any range, deleted."""
    pieces = [bytes([n]) * MIB for n in range(12)]
    async with files.uploading(ADA) as upload:
        for piece in pieces:
            await upload.write(piece)
        file = await upload.finish("a", "user_data")
    assert {f"kept/{file.id}"} == objects(server)
    assert any(method == "POST" and "uploads" in path for method, path in server.requests)
    content = await files.open(file)
    start, stop = 5 * MIB - 3, 7 * MIB + 1
    part = b"".join([chunk async for chunk in content.chunks(start, stop)])
    await content.close()
    assert b"".join(pieces)[start:stop] == part
    await files.delete(ADA, file.id)
    assert set() == objects(server)


async def test_an_upload_that_is_not_finished_leaves_no_object(
    files: Files, server: S3Server
) -> None:
    """Of one part and of several."""
    for size in (CHUNK_BYTES, 12 * MIB):
        async with files.uploading(ADA) as upload:
            await upload.write(b"x" * size)
        assert set() == objects(server)


async def test_a_bucket_that_fails_for_a_moment_is_asked_again(
    files: Files, server: S3Server
) -> None:
    """The upload goes on."""
    server.fail(503, times=1, method="PUT")
    file = await keep(files)
    assert {f"kept/{file.id}"} == objects(server)


async def test_a_bucket_that_is_away_is_told_and_holds_nothing(
    files: Files, server: S3Server
) -> None:
    """Neither a row nor an object; clients see no bucket."""
    server.fail(503, times=1000, method="PUT")
    server.fail(503, times=1000, method="POST")
    for content in (b"x", b"x" * 12 * MIB):
        with pytest.raises(Overloaded, match="unable to reach its storage") as raised:
            await keep(files, content)
        assert BUCKET not in raised.value.message
    assert (set(), []) == (objects(server), (await files.list(ADA)).items)


async def test_orphans_in_a_bucket_are_swept(files: Files, server: S3Server, clock: Clock) -> None:
    """By when they were written; files and what is not ours stay."""
    kept = await keep(files)
    for name in (file_id(1.0), "README"):
        files.contents.location(name).write_bytes(b"x")
    assert 0 == await files.remove_orphans()
    clock.now_s = max(stored.written.timestamp() for stored in server.buckets[BUCKET].values())
    clock.now_s += 90_000
    assert 1 == await files.remove_orphans()
    assert {f"kept/{kept.id}", "kept/README"} == objects(server)
