"""A closed batch's files, put together from its units' parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from omai_ray.batches.answering import read_unit
from omai_ray.batches.watch import Stop
from omai_ray.files import Contents
from omai_ray.files.contents import Draft
from omai_ray.files.names import file_id
from omai_ray.store import Batch, BatchOutcome, BatchUnit, File

_WHY: dict[BatchOutcome, Stop] = {"cancelled": "batch_cancelled", "expired": "batch_expired"}


async def assemble(
    contents: Contents,
    batch: Batch,
    outcome: BatchOutcome,
    units: Sequence[BatchUnit],
    clock: Callable[[], float] = time.time,
) -> tuple[File | None, File | None]:
    """Write a closed batch's output and error files; None for one that would be empty.

    Their content is durable; that they are files is for the caller to say, and until then nobody
    knows of them. Parts are read a chunk at a time. Raises Overloaded, InsufficientStorage.
    """
    output, error = (_Growing(contents, batch, kind, clock()) for kind in ("output", "error"))
    try:
        for unit in units:
            if unit.part is None:
                for line in await read_unit(contents, batch, unit):
                    await error.write(line.stopped(_WHY[outcome]))
            else:
                await _divide(contents, unit, unit.part, output, error)
        return await output.finish(), await error.finish()
    except BaseException:
        await output.discard()
        await error.discard()
        raise


async def _divide(
    contents: Contents, unit: BatchUnit, part: str, output: _Growing, error: _Growing
) -> None:
    content = await contents.open(part)
    middle = unit.output_bytes or 0
    try:
        for file, start, stop in ((output, 0, middle), (error, middle, content.size)):
            async for chunk in content.chunks(start, stop):
                await file.write(chunk)
    finally:
        await content.close()


class _Growing:
    """One of the two files."""

    def __init__(self, contents: Contents, batch: Batch, kind: str, now_s: float) -> None:
        kept_s = batch.output_expires_s
        self._file = File(
            id=file_id(now_s),
            account_id=batch.account_id,
            purpose="batch_output",
            filename=f"{batch.id}_{kind}.jsonl",
            bytes=0,
            created=now_s,
            expires=None if kept_s is None else now_s + kept_s,
            in_use=0,
        )
        self._draft: Draft = contents.draft(self._file.id)
        self._bytes = 0

    async def write(self, data: bytes) -> None:
        """Add to it."""
        self._bytes += len(data)
        await self._draft.write(data)

    async def finish(self) -> File | None:
        """Return the file once its content is durable; None for an empty one."""
        if not self._bytes:
            return None
        await self._draft.complete()
        return replace(self._file, bytes=self._bytes)

    async def discard(self) -> None:
        """Remove what was written."""
        await self._draft.discard()
