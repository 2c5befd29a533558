from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import (
    InsufficientStorage,
    InvalidRequest,
    NotFound,
    Overloaded,
    QuotaExceeded,
)
from omai_ray.files import Files, sweep
from omai_ray.files import files as files_module
from omai_ray.files.contents import CHUNK_BYTES
from omai_ray.files.names import file_id
from omai_ray.storage import Location, Output, StorageError
from omai_ray.store import File, Store
from tests.unit.files.conftest import ADA, BOB, Clock, keep, names

MISSING = "file-" + "0" * 31


async def content_of(files: Files, file: File) -> bytes:
    """Return all that a file holds."""
    content = await files.open(file)
    data = b"".join([chunk async for chunk in content.chunks()])
    await content.close()
    return data


async def test_a_file_is_what_was_written_piece_by_piece(files: Files, clock: Clock) -> None:
    """Larger than a chunk, and not a multiple of one."""
    pieces = [bytes([n]) * 400_000 for n in range(6)]
    async with files.uploading(ADA) as upload:
        for piece in pieces:
            await upload.write(piece)
        file = await upload.finish("a.jsonl", "batch", 3600)

    assert b"".join(pieces) == await content_of(files, file)
    assert file == await files.get(ADA, file.id)
    assert (2_400_000, clock.now_s + 3600, 0) == (file.bytes, file.expires, file.in_use)
    content = await files.open(file)
    start, stop = CHUNK_BYTES - 3, CHUNK_BYTES * 2 + 5
    part = b"".join([chunk async for chunk in content.chunks(start, stop)])
    await content.close()
    assert b"".join(pieces)[start:stop] == part


async def test_an_empty_file_is_one(files: Files) -> None:
    """What it is good for is not for us to judge."""
    async with files.uploading(ADA) as upload:
        file = await upload.finish("a.jsonl", "user_data")
    assert (0, b"") == (file.bytes, await content_of(files, file))


@pytest.mark.parametrize("given", ["missing", "of another", "../x", "", "a" * 500, "file-\0"])
async def test_a_file_that_is_not_ones_own_is_not_there(files: Files, given: str) -> None:
    """Whatever is tried with it, in the same words."""
    others = await keep(files, account=BOB)
    name = {"missing": MISSING, "of another": others.id}.get(given, given)
    for attempt in (files.get(ADA, name), files.delete(ADA, name)):
        with pytest.raises(NotFound, match="No such File object"):
            await attempt
    assert others == await files.get(BOB, others.id)


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_hold_every_file_once(
    files: Files, clock: Clock, order: Literal["asc", "desc"]
) -> None:
    """In order of creation; also where each file is deleted once it was listed."""
    made = []
    for _ in range(5):
        clock.now_s += 1
        made.append((await keep(files)).id)
    await keep(files, account=BOB)
    await keep(files, purpose="user_data")
    assert not (await files.list(ADA, purpose="a\0b")).items

    listed: list[str] = []
    after = None
    while True:
        page = await files.list(ADA, purpose="batch", after=after, limit=2, order=order)
        listed += [file.id for file in page.items]
        if not page.has_more:
            break
        after = listed[-1]
        await files.delete(ADA, after)
    assert listed == (made if order == "asc" else made[::-1])


async def test_a_cursor_that_is_no_file_is_refused(files: Files) -> None:
    """It is named."""
    with pytest.raises(InvalidRequest, match="Invalid 'after'"):
        await files.list(ADA, after="acct_1")


async def test_content_beyond_the_quota_is_refused_as_it_comes(files: Files, root: Path) -> None:
    """What is there already counts; nothing of the refused file stays."""
    kept = await keep(files, b"x" * 600)
    async with files.uploading(ADA, quota_bytes=1000) as upload:
        await upload.write(b"x" * 400)
        with pytest.raises(QuotaExceeded, match="Limit 1000 bytes, with this file 1001"):
            await upload.write(b"x")
    async with files.uploading(BOB, quota_bytes=1000) as upload:
        await upload.write(b"x" * 1000)
    assert {kept.id} == names(root)


async def test_uploads_at_once_count_against_the_quota_together(files: Files) -> None:
    """Or a hundred of them could fill the disk."""
    async with files.uploading(ADA, 1000) as one, files.uploading(ADA, 1000) as other:
        await one.write(b"x" * 600)
        with pytest.raises(QuotaExceeded):
            await other.write(b"x" * 600)
    async with files.uploading(ADA, 1000) as again:
        await again.write(b"x" * 1000)
        await again.finish("a", "batch")


async def test_of_uploads_in_two_processes_one_gets_the_last_room(
    files: Files, store: Store, root: Path
) -> None:
    """Neither knows of the other before the rows are written; the database decides."""
    elsewhere = Files(store, files.contents)
    async with files.uploading(ADA, 1000) as one, elsewhere.uploading(ADA, 1000) as other:
        await one.write(b"x" * 600)
        await other.write(b"x" * 600)
        done = await asyncio.gather(
            one.finish("a", "batch"), other.finish("b", "batch"), return_exceptions=True
        )
    kept = [file for file in done if isinstance(file, File)]
    assert [QuotaExceeded] == [type(found) for found in done if found not in kept]
    assert {kept[0].id} == names(root)
    assert 600 == await files.stored_bytes(ADA)


@pytest.mark.parametrize("name", ["MAX_UPLOADS", "MAX_ACCOUNTS_UPLOADS"])
async def test_more_uploads_than_are_bearable_are_refused(
    files: Files, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each holds memory, and no account may hold all; one that has ended makes room."""
    monkeypatch.setattr(files_module, name, 1)
    async with files.uploading(ADA):
        with pytest.raises(Overloaded, match="Too many uploads"):
            await keep(files)
        if name == "MAX_ACCOUNTS_UPLOADS":
            await keep(files, account=BOB)
    await keep(files)


async def test_an_upload_that_is_not_finished_leaves_nothing(files: Files, root: Path) -> None:
    """Whatever ended it."""

    async def fail() -> None:
        async with files.uploading(ADA) as upload:
            await upload.write(b"x" * CHUNK_BYTES)
            assert len(names(root)) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert (set(), []) == (names(root), (await files.list(ADA)).items)


async def test_an_upload_cancelled_in_mid_write_leaves_nothing(
    files: Files, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write goes on in its thread, and what it wrote is removed once it has ended."""
    writing, go_on = threading.Event(), threading.Event()
    write = Output.write

    def slow(output: Output, content: bytes) -> None:
        writing.set()
        go_on.wait()
        write(output, content)

    monkeypatch.setattr(Output, "write", slow)

    async def send() -> None:
        async with files.uploading(ADA) as upload:
            await upload.write(b"x" * CHUNK_BYTES)

    sending = asyncio.create_task(send())
    await asyncio.to_thread(writing.wait)
    sending.cancel()
    asyncio.get_running_loop().call_soon(go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert set() == names(root)


@pytest.mark.parametrize("step", ["open_output", "write", "close"])
@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, InsufficientStorage), (errno.EIO, Overloaded)]
)
async def test_storage_that_fails_an_upload_keeps_none_of_it(
    files: Files,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    number: int,
    expected: type[Exception],
) -> None:
    """A full disk is told from one that is away; clients see no path."""
    if step == "open_output":
        monkeypatch.setattr(Location, step, failing(number))
    else:
        monkeypatch.setattr(Output, step, failing(number, getattr(Output, step)))
    with pytest.raises(expected) as raised:
        await keep(files, b"x" * (CHUNK_BYTES + 1))
    assert "/secret/place" not in str(raised.value)
    assert (set(), []) == (names(root), (await files.list(ADA)).items)


def failing(number: int, work: Callable[..., object] | None = None) -> Any:
    """Return a method that does its work, if it has any, and then fails as storage does."""

    def fail(*args: Any) -> None:
        if work is not None:
            work(*args)
        raise StorageError(f"/secret/place: {os.strerror(number)}") from OSError(number, "")

    return fail


async def test_storage_that_cannot_be_read_is_away(
    files: Files, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content that is gone is as a file that is not there."""
    file = await keep(files)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "open_input", failing(errno.EIO))
        with pytest.raises(Overloaded, match="temporarily unable to reach its storage"):
            await files.open(file)
    (root / file.id).unlink()
    with pytest.raises(NotFound, match=file.id):
        await files.open(file)


async def test_a_file_whose_row_may_be_there_keeps_its_content(
    files: Files, root: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """The database went away as the row was written; only the sweep may tell."""

    async def away(*_: object) -> None:
        raise Overloaded("away")

    async with files.uploading(ADA) as upload:
        await upload.write(b"x")
        monkeypatch.setattr(upload, "_insert", away)
        with pytest.raises(Overloaded):
            await upload.finish("a", "batch")
    assert len(names(root)) == 1
    age(root, clock.now_s - files_module.ORPHAN_S - 1)
    assert 1 == await files.remove_orphans()
    assert set() == names(root)


def age(root: Path, mtime_s: float) -> None:
    """Let all content have been written at a time."""
    for path in root.iterdir():
        os.utime(path, (mtime_s, mtime_s))


async def test_orphans_are_content_of_ours_that_is_old_and_has_no_row(
    files: Files, root: Path, clock: Clock
) -> None:
    """Not an upload under way, nor a file, nor what somebody else has put there."""
    kept = await keep(files)
    for name in (file_id(1.0), "README"):
        (root / name).write_bytes(b"x")
    age(root, clock.now_s - files_module.ORPHAN_S - 1)
    arriving = file_id(2.0)
    (root / arriving).write_bytes(b"x")
    os.utime(root / arriving, (clock.now_s, clock.now_s))
    assert 1 == await files.remove_orphans()
    assert {kept.id, "README", arriving} == names(root)


async def test_an_expired_file_is_gone_at_once_and_swept_later(
    files: Files, root: Path, clock: Clock
) -> None:
    """Its content too; files without an expiry stay."""
    expiring = await keep(files, expires_after_s=3600)
    kept = await keep(files)
    clock.now_s += 3599
    assert expiring == await files.get(ADA, expiring.id)
    assert 0 == await files.remove_expired()
    clock.now_s += 1
    with pytest.raises(NotFound):
        await files.get(ADA, expiring.id)
    assert [kept] == (await files.list(ADA)).items
    assert 1 == await files.remove_expired()
    assert {kept.id} == names(root)


async def test_expired_files_beyond_one_transaction_are_swept_too(
    files: Files, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction is bounded; a sweep is not over before all are gone."""
    monkeypatch.setattr(files_module, "_SWEPT_AT_ONCE", 2)
    for _ in range(5):
        await keep(files, expires_after_s=3600)
    clock.now_s += 3600
    assert 5 == await files.remove_expired()
    assert set() == names(root)


async def test_a_file_in_use_is_neither_deleted_nor_expired(
    files: Files, store: Store, clock: Clock
) -> None:
    """Until all that hold it have released it."""
    file = await keep(files, expires_after_s=3600)
    async with store.writing() as connection:
        await files.hold(connection, ADA, file.id)
        held = await files.hold(connection, ADA, file.id)
    assert held.in_use == 2
    with pytest.raises(InvalidRequest, match="input of a batch or job that has") as raised:
        await files.delete(ADA, file.id)
    assert raised.value.code == "file_in_use"
    clock.now_s += 3600
    assert 0 == await files.remove_expired()
    assert b"line\n" == await content_of(files, await files.get(ADA, file.id))

    await released(files, store, file)
    assert 0 == await files.remove_expired()
    await released(files, store, file)
    assert 1 == await files.remove_expired()


async def released(files: Files, store: Store, file: File) -> None:
    """Release a file once."""
    async with store.writing() as connection:
        await files.release(connection, file.id)


async def test_what_is_held_in_a_transaction_that_fails_is_not_held(
    files: Files, store: Store
) -> None:
    """The batch is not there either."""
    file = await keep(files)

    async def fail(connection: AsyncConnection) -> None:
        await files.hold(connection, ADA, file.id)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with store.writing() as connection:
            await fail(connection)
    await files.delete(ADA, file.id)


async def test_only_an_accounts_own_live_files_can_be_held(
    files: Files, store: Store, clock: Clock
) -> None:
    """Another's is not there, and neither is an expired one."""
    others = await keep(files, account=BOB)
    expired = await keep(files, expires_after_s=3600)
    clock.now_s += 3600
    for name in (others.id, expired.id, MISSING, "../x"):
        with pytest.raises(NotFound):
            async with store.writing() as connection:
                await files.hold(connection, ADA, name)


async def test_a_deletion_holds_where_storage_is_away(
    files: Files, root: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is gone for its owner; its content is swept later."""
    file = await keep(files)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "delete", failing(errno.EIO))
        await files.delete(ADA, file.id)
    with pytest.raises(NotFound):
        await files.get(ADA, file.id)
    age(root, clock.now_s - files_module.ORPHAN_S - 1)
    assert 1 == await files.remove_orphans()


async def test_the_sweep_goes_on_after_a_failure(files: Files, root: Path, clock: Clock) -> None:
    """The database may be away for a while."""
    file = await keep(files, expires_after_s=3600)
    clock.now_s += 3600
    tried = asyncio.Event()
    remove = files.remove_expired
    outcomes: list[Exception | None] = [Overloaded("away"), KeyError("broken"), None]

    async def remove_expired() -> int:
        outcome = outcomes.pop(0) if outcomes else None
        if outcome is not None:
            raise outcome
        removed = await remove()
        tried.set()
        return removed

    files.remove_expired = remove_expired  # type: ignore[method-assign]
    sweeping = asyncio.create_task(sweep(files, every_s=0))
    await tried.wait()
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
    assert file.id not in names(root)


async def test_a_refused_filename_leaves_nothing(files: Files, root: Path) -> None:
    """It is only known to be wrong at the end."""
    with pytest.raises(InvalidRequest, match="Invalid 'file': its filename"):
        await keep(files, filename="..")
    assert set() == names(root)
