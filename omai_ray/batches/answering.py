"""Answering a unit's lines, and committing them as one: all that a worker does."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import orjson

from omai_ray.batches.lines import Line, parse_line, read_lines
from omai_ray.batches.queue import BatchQueue, Tally
from omai_ray.batches.watch import Looks, Sleep, Stop, Watch, stop_of
from omai_ray.errors import OMAiError, Overloaded, ServerError
from omai_ray.files import Content, Contents
from omai_ray.identity.principal import Principal
from omai_ray.ledger import UsageRecord
from omai_ray.store import Batch, BatchUnit

WATCH_S = 1.0
_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 60.0
_ATTEMPTS = {503: 25, 500: 3}
"""Of a line whose failure may pass: a model that is away, for some 20 minutes; one that fails."""

_STOPPED: dict[Stop, str] = {
    "batch_cancelled": "This request was not executed before the batch was cancelled.",
    "batch_expired": ("This request could not be executed before the completion window expired."),
}
_LOST = "The answer to this request is no longer in the server's storage."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one request. body: JSON. usage: what it used, where it succeeded."""

    status: int
    body: bytes
    usage: UsageRecord | None = None


@dataclass(frozen=True, slots=True)
class LineRequest:
    """One line as a request. usage_id: always the same, so that what it used counts once."""

    principal: Principal
    endpoint: str
    body: bytes
    batch_id: str
    usage_id: str
    request_id: str


class Answers(Protocol):
    """What answers requests."""

    async def answer(self, request: LineRequest) -> Answered:
        """Return the answer, be it an error's envelope. Raises nothing but CancelledError.

        Cancelled, it may still return one: what is paid for is not lost.
        """


Owner = Callable[[str, str | None], Awaitable[Principal]]
"""Finds whom work is done for, by the account's id and the key's; raises OMAiError."""


@dataclass(frozen=True, slots=True)
class NumberedLine:
    """A line of a batch's input."""

    batch_id: str
    number: int
    line: Line

    @property
    def id(self) -> str:
        """The request's id in the batch's files: the same whenever it is made."""
        digest = hashlib.blake2b(f"{self.batch_id}/{self.number}".encode(), digest_size=16)
        return f"batch_req_{digest.hexdigest()}"

    def answered(self, request_id: str, answer: Answered) -> bytes:
        """Return the line that says how it was answered."""
        response = {
            "status_code": answer.status,
            "request_id": request_id,
            "body": orjson.Fragment(answer.body),
        }
        return self._written(response, None)

    def stopped(self, stop: Stop) -> bytes:
        """Return the line that says why it was not answered."""
        return self._written(None, {"code": stop, "message": _STOPPED[stop]})

    def lost(self) -> bytes:
        """Return the line that says that its answer is no longer there."""
        return self._written(None, {"code": "answer_lost", "message": _LOST})

    def _written(self, response: object, error: object) -> bytes:
        value = {
            "id": self.id,
            "custom_id": self.line.custom_id,
            "response": response,
            "error": error,
        }
        return orjson.dumps(value) + b"\n"


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of a line. usage: None where it failed."""

    written: bytes
    usage: UsageRecord | None
    completed: bool


class UnitWorker:
    """Answers units; of any number of workers, each line of one only is kept.

    owner: is asked for each unit. max_in_flight: lines at once, of all units together. clock:
    seconds since the epoch. watch_s: how often it is looked whether a batch goes on.
    """

    def __init__(
        self,
        queue: BatchQueue,
        contents: Contents,
        answers: Answers,
        owner: Owner,
        max_in_flight: int,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Sleep = asyncio.sleep,
        watch_s: float = WATCH_S,
    ) -> None:
        self._watch_s = watch_s
        self._queue = queue
        self._looks = Looks(queue)
        self._contents = contents
        self._answers = answers
        self._owner = owner
        self._slots = asyncio.Semaphore(max_in_flight)
        self._clock = clock
        self._sleep = sleep

    async def do(self, unit: BatchUnit) -> bool:
        """Answer a unit's lines and commit them; whether that was done.

        Where the batch is cancelled or expires meanwhile, lines without an answer say so. A unit
        that is begun after that is left as it is.
        """
        batch = await self._queue.read(unit.batch_id)
        if batch.outcome is not None or stop_of(batch, self._clock()) is not None:
            return False
        content = await self._contents.open(batch.input_file_id)
        lines = await read_unit(content, batch, unit)
        results: list[_Result | None] = [None] * len(lines)
        async with Watch(self._looks, batch.id, self._watch_s, self._sleep) as watch:
            await _first(watch.stopped, self._answer_all(batch, lines, results))
        batch = await self._queue.read(unit.batch_id)
        if batch.outcome is not None:
            return False
        return await self._commit(unit, batch, lines, results)

    async def _answer_all(
        self, batch: Batch, lines: Sequence[NumberedLine], results: list[_Result | None]
    ) -> None:
        try:
            owner: Principal | OMAiError = await self._owner(batch.account_id, batch.key_id)
        except OMAiError as error:
            if error.status >= 500:  # ours, and for no line to tell
                raise
            owner = error

        async def one(index: int) -> None:
            line = lines[index]
            async with self._slots:
                try:
                    results[index] = await self._answer(batch, line, owner)
                except Exception:  # one line's failure must not hold up the batch for ever
                    _log.exception("%s: line %d could not be answered", batch.id, line.number)
                    results[index] = _failed(line)

        async with asyncio.TaskGroup() as group:
            for index in range(len(lines)):
                group.create_task(one(index))

    async def _answer(
        self, batch: Batch, line: NumberedLine, owner: Principal | OMAiError
    ) -> _Result:
        request_id = _request_id()
        if isinstance(owner, OMAiError):
            answer = Answered(owner.status, orjson.dumps(owner.envelope()))
            return _Result(line.answered(request_id, answer), None, completed=False)
        request = LineRequest(
            owner,
            batch.endpoint,
            orjson.dumps(line.line.body),
            batch.id,
            f"use_{batch.id}_{line.number}",
            request_id,
        )
        retry_s, attempts = _FIRST_RETRY_S, 1
        while (answer := await self._answers.answer(request)).status in _ATTEMPTS:
            if attempts >= _ATTEMPTS[answer.status] or _is_cancelled():
                break
            attempts += 1
            await self._sleep(retry_s)
            retry_s = min(_LAST_RETRY_S, retry_s * 2)
        return _Result(line.answered(request_id, answer), answer.usage, answer.status == 200)

    async def _commit(
        self,
        unit: BatchUnit,
        batch: Batch,
        lines: Sequence[NumberedLine],
        results: Sequence[_Result | None],
    ) -> bool:
        """Write the answers as one object, then its row: whoever has the row has answered."""
        # Nothing but a stop keeps a line from being answered.
        stop = stop_of(batch, self._clock()) or "batch_expired"
        output: list[bytes] = []
        error: list[bytes] = []
        for line, result in zip(lines, results, strict=True):
            if result is None:
                error.append(line.stopped(stop))
            else:
                (output if result.completed else error).append(result.written)
        part = f"{unit.batch_id}-{unit.number:05d}-{secrets.token_hex(4)}"
        draft = self._contents.draft(part)
        for written in (*output, *error):
            await draft.write(written)
        await draft.complete()
        tally = _tally(len(output), len(error), results)
        committed = await self._patiently(
            lambda: self._queue.commit(unit, part, sum(map(len, output)), tally)
        )
        if not committed:
            await self._contents.delete(part)
        return committed

    async def _patiently(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Return what some work does once the database lets it: answers are dear."""
        retry_s = _FIRST_RETRY_S
        for _ in range(_ATTEMPTS[503]):
            try:
                return await work()
            except Overloaded:
                await self._sleep(retry_s)
                retry_s = min(_LAST_RETRY_S, retry_s * 2)
        return await work()


def _failed(line: NumberedLine) -> _Result:
    error = ServerError("The server had an error while processing this request.")
    answer = Answered(error.status, orjson.dumps(error.envelope()))
    return _Result(line.answered(_request_id(), answer), None, completed=False)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _request_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def _tally(completed: int, failed: int, results: Sequence[_Result | None]) -> Tally:
    usages = [r.usage for r in results if r is not None and r.usage is not None]
    return Tally(
        completed,
        failed,
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
    )


async def read_unit(content: Content, batch: Batch, unit: BatchUnit) -> list[NumberedLine]:
    """Return a unit's lines from the batch's input, which is closed. Raises Overloaded."""
    try:
        chunks = [c async for c in content.chunks(unit.offset, unit.offset + unit.length)]
    finally:
        await content.close()
    return list(_parsed(b"".join(chunks), batch, unit))


def _parsed(data: bytes, batch: Batch, unit: BatchUnit) -> Iterator[NumberedLine]:
    for raw in read_lines(BytesIO(data), len(data), unit.first_line):
        if raw.content is not None:  # which is so for lines that are longer than all of them
            yield NumberedLine(batch.id, raw.number, parse_line(raw.content, batch.endpoint))


async def _first(stopped: asyncio.Task[None], work: Awaitable[None]) -> None:
    """Do some work until its end, or until something stops it, which cancels it.

    Raises what either has failed by.
    """
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        await asyncio.wait({working})
    for task in (working, stopped):
        error = task.exception() if task.done() and not task.cancelled() else None
        if error is not None:
            raise error
