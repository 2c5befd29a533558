"""A closed batch's files, put together from its units' parts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from omai_ray.batches.answering import read_unit
from omai_ray.batches.check import Problem
from omai_ray.batches.queue import Assembled
from omai_ray.batches.watch import Stop
from omai_ray.files import Content, Contents
from omai_ray.files.contents import Draft
from omai_ray.files.names import file_id
from omai_ray.storage import ObjectNotFound
from omai_ray.store import Batch, BatchOutcome, BatchUnit, File

MISSED_S = 3600.0
"""How long parts may be missing: a directory that is not mounted looks like one that is empty."""
_log = logging.getLogger(__name__)
_WHY: dict[BatchOutcome, Stop] = {"cancelled": "batch_cancelled", "expired": "batch_expired"}


async def assemble(
    contents: Contents,
    batch: Batch,
    outcome: BatchOutcome,
    units: Sequence[BatchUnit],
    clock: Callable[[], float] = time.time,
) -> Assembled:
    """Write a closed batch's output and error files.

    That they are files is for the caller to say, and until then nobody knows of them. Parts are
    read a chunk at a time. Raises Overloaded, InsufficientStorage, and ObjectNotFound for a part
    or an input that is not there; an hour after the batch was closed, the files tell of that. A
    batch that has failed has lost its input: that is not waited for once more.
    """
    now_s = clock()
    output, error = (_Growing(contents, batch, kind, now_s) for kind in ("output", "error"))
    closed_s = batch.finalizing_at or batch.cancelling_at or batch.created
    seeking = _Seeking(contents, given_up=now_s - closed_s > MISSED_S)
    untold = 0
    try:
        for unit in units:
            part = await seeking.open(unit.part) if unit.part is not None else None
            if part is not None:
                await _divide(part, unit, output, error)
            elif (
                outcome == "failed"
                or (input_file := await seeking.open(batch.input_file_id)) is None
            ):
                untold += unit.lines
            else:
                for line in await read_unit(input_file, batch, unit):
                    lost = unit.part is not None
                    await error.write(line.lost() if lost else line.stopped(_WHY[outcome]))
        made = await output.finish(), await error.finish()
    except BaseException:
        await output.discard()
        await error.discard()
        raise
    return Assembled(*made, output.lines, _problems(untold))


def _problems(untold: int) -> tuple[Problem, ...]:
    if not untold:
        return ()
    message = (
        f"The input file has no content any more: {untold} requests without an answer are in "
        "neither file."
    )
    return (Problem("invalid_file", message),)


@dataclass(frozen=True)
class _Seeking:
    """Opens what is there. given_up: whether what is not there now will never be."""

    contents: Contents
    given_up: bool

    async def open(self, name: str) -> Content | None:
        """Return None for what is given up. Raises ObjectNotFound."""
        try:
            return await self.contents.open(name)
        except ObjectNotFound:
            if not self.given_up:
                raise
            _log.error("%s is not there any more", name)
            return None


async def _divide(content: Content, unit: BatchUnit, output: _Growing, error: _Growing) -> None:
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
        self.lines = 0

    async def write(self, data: bytes) -> None:
        """Add to it."""
        self.lines += data.count(b"\n")
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
