"""Files: uploaded, listed, read, deleted, expired.

A row is written once its content is complete and durable, and goes before it: whatever ends in
between leaves content without a row, which nobody sees and `sweep` removes.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Literal

from sqlalchemy import ColumnElement, and_, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import InvalidRequest, NotFound, OMAiError, Overloaded, QuotaExceeded
from omai_ray.files.contents import Content, Contents
from omai_ray.files.names import file_id, is_file_id
from omai_ray.files.uploads import Upload
from omai_ray.identity.checks import shown
from omai_ray.identity.paging import Page
from omai_ray.storage import ObjectNotFound
from omai_ray.store import File, Store, is_storable
from omai_ray.store.tables import accounts, files

MAX_PAGE = 10_000
MIN_LIFE_S = 3600
MAX_LIFE_S = 30 * 86_400
MAX_UPLOADS = 32
MAX_ACCOUNTS_UPLOADS = 16
ORPHAN_S = 86_400.0
"""How old content without a row must be to be nobody's: far older than an upload can take."""
_SWEPT_AT_ONCE = 500
_log = logging.getLogger(__name__)


class Files:
    """What accounts keep here.

    Every method raises NotFound for a file that is not there, or is another account's, and
    Overloaded where the database or the storage is away. clock: seconds since the epoch.
    """

    def __init__(
        self, store: Store, contents: Contents, clock: Callable[[], float] = time.time
    ) -> None:
        self.contents = contents
        self._store = store
        self._clock = clock
        self._arriving: Counter[str] = Counter()
        self._uploads: Counter[str] = Counter()

    @asynccontextmanager
    async def uploading(
        self, account_id: str, quota_bytes: int | None = None
    ) -> AsyncIterator[Upload]:
        """Give an upload to write and finish; what is not finished at the end leaves nothing.

        quota_bytes: what the account may keep in all, None without bound.
        Raises Overloaded where too many are under way, of the account or of all.
        """
        with self._counted(account_id):
            stored = 0 if quota_bytes is None else await self.stored_bytes(account_id)
            arriving = self._arriving

            def take(size: int) -> None:
                _require_room(stored + arriving[account_id] + size, quota_bytes)
                arriving[account_id] += size

            begun = self._begin(account_id)
            draft = self.contents.draft(begun.id)
            upload = Upload(begun, draft, take, partial(self._insert, quota_bytes))
            try:
                yield upload
            finally:
                arriving[account_id] -= upload.bytes
                arriving += Counter()  # which drops those of whom nothing arrives
                await upload.close()

    async def get(self, account_id: str, file: str) -> File:
        """Return an account's file."""
        if is_file_id(file):
            async with self._store.reading() as connection:
                found = await connection.execute(select(files).where(*self._own(account_id, file)))
                row = found.mappings().first()
            if row is not None:
                return File.from_row(row)
        raise _not_found(file)

    async def list(
        self,
        account_id: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = MAX_PAGE,
        order: Literal["asc", "desc"] = "desc",
    ) -> Page[File]:
        """Return an account's files, newest first unless `order` is asc.

        after: the id of the last one seen, which may be gone by now.
        """
        if after is not None and not is_file_id(after):
            raise InvalidRequest("Invalid 'after': expected a file's id.", param="after")
        statement = select(files).where(files.c.account_id == account_id, self._live())
        if purpose is not None:
            if not is_storable(purpose):
                return Page.of([], limit)
            statement = statement.where(files.c.purpose == purpose)
        if after is not None:
            beyond = files.c.id > after if order == "asc" else files.c.id < after
            statement = statement.where(beyond)
        by = files.c.id.asc() if order == "asc" else files.c.id.desc()
        async with self._store.reading() as connection:
            rows = await connection.execute(statement.order_by(by).limit(limit + 1))
            return Page.of([File.from_row(row) for row in rows.mappings()], limit)

    async def delete(self, account_id: str, file: str) -> None:
        """Remove an account's file. Raises InvalidRequest where a batch or job still reads it."""
        found = await self.get(account_id, file)
        gone = delete(files).where(*self._own(account_id, found.id), files.c.in_use == 0)
        async with self._store.writing() as connection:
            removed = (await connection.execute(gone)).rowcount
        if not removed:
            await self.get(account_id, file)  # somebody else may have removed it
            raise InvalidRequest(
                f"The file '{found.id}' is the input of a batch or job that has not ended: cancel "
                "it, or wait for its end.",
                param="file_id",
                code="file_in_use",
            )
        await self._remove_content(found.id)

    async def open(self, file: File) -> Content:
        """Return a file's content, open for reading; the caller closes it."""
        try:
            return await self.contents.open(file.id)
        except ObjectNotFound:
            _log.error("%s has a row and no content", file.id)
            raise _not_found(file.id) from None

    async def hold(
        self, connection: AsyncConnection, account_id: str, file: str, field: str = "id"
    ) -> File:
        """Return an account's file, kept from deletion and expiry until `release`.

        field: of the request, that names it. Done in the caller's transaction, so that what uses
        the file is there just when it is held.
        """
        if is_file_id(file):
            held = update(files).where(*self._own(account_id, file))
            held = held.values(in_use=files.c.in_use + 1)
            row = (await connection.execute(held.returning(files))).mappings().first()
            if row is not None:
                return File.from_row(row)
        raise _not_found(file, field)

    async def release(self, connection: AsyncConnection, file: str) -> None:
        """End what `hold` began, in the transaction in which the file's use ends."""
        one = and_(files.c.id == file, files.c.in_use > 0)
        await connection.execute(update(files).where(one).values(in_use=files.c.in_use - 1))

    async def add(self, connection: AsyncConnection, file: File) -> None:
        """Make a file of content that is complete and durable, in the caller's transaction."""
        await connection.execute(insert(files).values(**file.row()))

    async def stored_bytes(self, account_id: str) -> int:
        """Return how much an account keeps."""
        async with self._store.reading() as connection:
            return await _stored_bytes(connection, account_id)

    async def remove_expired(self) -> int:
        """Remove files past their expiry; return how many."""
        over = and_(files.c.expires <= self._clock(), files.c.in_use == 0)
        some = select(files.c.id).where(over).limit(_SWEPT_AT_ONCE)
        removed = 0
        while True:
            async with self._store.writing() as connection:
                gone = delete(files).where(files.c.id.in_(some), over).returning(files.c.id)
                ids = list((await connection.execute(gone)).scalars())
            for one in ids:
                await self._remove_content(one)
            removed += len(ids)
            if len(ids) < _SWEPT_AT_ONCE:
                return removed

    async def remove_orphans(self) -> int:
        """Remove old content that has no row; return how much of it there was."""
        found = await self.contents.names_before(self._clock() - ORPHAN_S)
        names = [name for name in found if is_file_id(name)]  # what else is there is not ours
        removed = 0
        for start in range(0, len(names), _SWEPT_AT_ONCE):
            some = names[start : start + _SWEPT_AT_ONCE]
            orphans = set(some) - await self._known(some)
            for one in orphans:
                await self.contents.delete(one)
            removed += len(orphans)
        return removed

    @contextmanager
    def _counted(self, account_id: str) -> Iterator[None]:
        uploads = self._uploads
        if uploads[account_id] >= MAX_ACCOUNTS_UPLOADS or uploads.total() >= MAX_UPLOADS:
            raise Overloaded(
                f"Too many uploads at once: at most {MAX_ACCOUNTS_UPLOADS} of an account and "
                f"{MAX_UPLOADS} of all are taken. Please try again."
            )
        uploads[account_id] += 1
        try:
            yield
        finally:
            uploads[account_id] -= 1
            uploads += Counter()

    def _begin(self, account_id: str) -> File:
        now_s = self._clock()
        return File(file_id(now_s), account_id, "user_data", "", 0, now_s, None, 0)

    async def _insert(self, quota_bytes: int | None, file: File) -> None:
        async with self._store.writing() as connection:
            if quota_bytes is not None:
                # Locked: two uploads side by side must not both find the last room free.
                owner = select(accounts.c.id).where(accounts.c.id == file.account_id)
                await connection.execute(owner.with_for_update())
                stored = await _stored_bytes(connection, file.account_id)
                _require_room(stored + file.bytes, quota_bytes)
            await self.add(connection, file)

    async def _known(self, ids: Sequence[str]) -> set[str]:
        async with self._store.reading() as connection:
            found = await connection.execute(select(files.c.id).where(files.c.id.in_(ids)))
            return set(found.scalars())

    async def _remove_content(self, file: str) -> None:
        try:
            await self.contents.delete(file)
        except OMAiError as error:
            _log.warning("the content of %s is left to be swept: %s", file, error.message)

    def _own(self, account_id: str, file: str) -> tuple[ColumnElement[bool], ...]:
        return (files.c.id == file, files.c.account_id == account_id, self._live())

    def _live(self) -> ColumnElement[bool]:
        now_s = self._clock()
        return or_(files.c.expires.is_(None), files.c.expires > now_s, files.c.in_use > 0)


async def _stored_bytes(connection: AsyncConnection, account_id: str) -> int:
    total = select(func.coalesce(func.sum(files.c.bytes), 0))
    return int(await connection.scalar(total.where(files.c.account_id == account_id)) or 0)


def _require_room(wanted: int, quota_bytes: int | None) -> None:
    if quota_bytes is not None and wanted > quota_bytes:
        raise QuotaExceeded(
            f"You exceeded your storage for files: Limit {quota_bytes} bytes, with this file "
            f"{wanted} or more. Delete files that you need no longer.",
            code="storage_quota_exceeded",
            headers={"x-should-retry": "false"},
        )


def _not_found(file: str, param: str = "id") -> NotFound:
    return NotFound(f"No such File object: {shown(file)}", param=param)
