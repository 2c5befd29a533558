"""A file on its way in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from omai_ray.errors import QuotaExceeded
from omai_ray.files.contents import Draft
from omai_ray.files.names import file_name
from omai_ray.store import File, Purpose


class Upload:
    """A file on its way in: `write` its content, then `finish` it.

    begun: the file as far as it is known. take: counts bytes that are to be written, or raises.
    insert: writes the row, or raises.
    """

    def __init__(
        self,
        begun: File,
        draft: Draft,
        take: Callable[[int], None],
        insert: Callable[[File], Awaitable[None]],
    ) -> None:
        self.bytes = 0
        self._begun = begun
        self._draft = draft
        self._take = take
        self._insert = insert
        self._storing: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Add to the content. Raises QuotaExceeded where the account has no room for it."""
        self._take(len(data))
        self.bytes += len(data)
        await self._draft.write(data)

    async def finish(
        self, filename: str, purpose: Purpose, expires_after_s: float | None = None
    ) -> File:
        """Return the file once it is durable. Who is cancelled in here may have made it.

        expires_after_s: from when the upload began; None for never.
        Raises QuotaExceeded where the account has no room, InvalidRequest for the name.
        """
        expires = None if expires_after_s is None else self._begun.created + expires_after_s
        file = replace(
            self._begun,
            filename=file_name(filename),
            purpose=purpose,
            bytes=self.bytes,
            expires=expires,
        )
        self._storing = asyncio.create_task(self._store(file))
        await asyncio.shield(self._storing)
        return file

    async def close(self) -> None:
        """Leave nothing, unless it was finished."""
        if self._storing is None:
            await self._draft.discard()
        else:
            await asyncio.wait({self._storing})

    async def _store(self, file: File) -> None:
        try:
            await self._draft.complete()
        except BaseException:
            await self._draft.discard()
            raise
        try:
            await self._insert(file)
        except QuotaExceeded:
            await self._draft.discard()
            raise
        # After another failure the row may be there: the content is left, for `remove_orphans`.
