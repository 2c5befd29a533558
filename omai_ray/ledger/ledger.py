"""The usage ledger: a response that a client saw complete has its record on disk."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Collection
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, RowMapping, func, select, tuple_

from omai_ray.errors import OMAiError, Overloaded, ServerError
from omai_ray.store import Store
from omai_ray.store.batches import Batch
from omai_ray.store.store import overloaded
from omai_ray.store.tables import usage, usage_hours, usage_months

Grouping = Literal["hour", "day", "account", "model", "key"]
HOUR_S = 3600
DAY_S = 86_400
EXPORT_ROWS = 5000
MAX_BATCH = 500
MAX_QUEUED = 10_000
PATIENCE_S = 15.0
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 1.0
_GROUPS = {"account": "account_id", "model": "model", "key": "key_id"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What one request used.

    request_id: made by the server and unique: a second record under it counts as the first one
    again. A client's own x-request-id must not be used, it could repeat one to be counted once.
    started_at: seconds since the epoch. status: the HTTP status. first_token_ms: from admission to
    the first token. cost: by the model's prices at the time, None where it has none. batch_id: of
    the batch whose line it was, if it was one.
    """

    request_id: str
    account_id: str
    key_id: str | None
    model: str
    endpoint: str
    status: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    started_at: float
    duration_ms: int
    first_token_ms: int | None = None
    finish_reason: str | None = None
    cost: float | None = None
    batch_id: str | None = None


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over requests."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: UsageTotals) -> UsageTotals:
        return UsageTotals(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cost + other.cost,
        )

    @classmethod
    def of(cls, record: UsageRecord) -> UsageTotals:
        """Return one request's."""
        return cls(
            1,
            record.prompt_tokens,
            record.completion_tokens,
            record.cached_tokens,
            record.cost or 0.0,
        )


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums of a report; what it is not grouped by is None. start: seconds since the epoch."""

    start: int | None
    account_id: str | None
    model: str | None
    key_id: str | None
    totals: UsageTotals


class _Queued(NamedTuple):
    record: UsageRecord
    done: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class UsageLedger:
    """Writes records in groups: those that come while a commit is under way share the next one.

    max_queued: how many records may wait; patience_s: how long `record` waits for its commit.
    """

    store: Store
    max_queued: int = MAX_QUEUED
    patience_s: float = PATIENCE_S
    _queue: deque[_Queued] = field(default_factory=deque)
    _writer: asyncio.Task[None] | None = None
    _closed: bool = False

    async def record(self, record: UsageRecord) -> None:
        """Return once the record is durable; the same request id twice is one record.

        Raises Overloaded where the queue is full, and where the database stays away for
        patience_s; the record then stays queued, as it does where the caller is cancelled.
        """
        if self._closed or len(self._queue) >= self.max_queued:
            _log.error("usage was not recorded: %s", json.dumps(asdict(record)))
            raise overloaded()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_seen)
        self._queue.append(_Queued(record, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        try:
            async with asyncio.timeout(self.patience_s):
                await asyncio.shield(done)
        except TimeoutError:
            raise overloaded() from None

    async def close(self, timeout_s: float = 10.0) -> None:
        """Commit what is queued; log, so that it can be entered by hand, what cannot be."""
        self._closed = True
        if self._writer is not None and not self._writer.done():
            await asyncio.wait({self._writer}, timeout=timeout_s)
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        for record, done in self._queue:
            _log.error("usage was not recorded: %s", json.dumps(asdict(record)))
            if not done.done():
                done.set_exception(overloaded())
        self._queue.clear()

    async def totals(self, account_id: str) -> UsageTotals:
        """Return an account's sums."""
        rows = await self.report(account_id, by=())
        return rows[0].totals if rows else UsageTotals()

    async def report(
        self,
        account_id: str | None = None,
        since: float = 0.0,
        until: float | None = None,
        by: Collection[Grouping] = (),
    ) -> list[UsageRow]:
        """Return an account's sums, or all accounts', for each hour or day, account, model and key.

        since, until: of the requests that started within, in whole hours: the first one from its
        beginning, the last one to its end. Seconds since the epoch; days are UTC's.
        """
        hours = usage_hours.c
        conditions = [hours.hour >= since // HOUR_S * HOUR_S]
        if account_id is not None:
            conditions.append(hours.account_id == account_id)
        if until is not None:
            conditions.append(hours.hour < -(-until // HOUR_S) * HOUR_S)
        width = DAY_S if "day" in by else HOUR_S
        groups: dict[str, ColumnElement[Any]] = {}
        if "hour" in by or "day" in by:
            groups["start"] = hours.hour - hours.hour % width
        groups |= {name: hours[column] for name, column in _GROUPS.items() if name in by}
        labelled = [column.label(name) for name, column in groups.items()]
        sums = [func.sum(hours[field.name]).label(field.name) for field in fields(UsageTotals)]
        statement = (
            select(*labelled, *sums)
            .where(*conditions)
            .group_by(*groups.values())
            .order_by(*groups.values())
        )
        async with self.store.reading() as connection:
            found = (await connection.execute(statement)).mappings().all()
        return [_row(row) for row in found if row["requests"] is not None]

    async def export(
        self, account_id: str | None = None, since: float = 0.0, until: float | None = None
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the records themselves, a few thousand at a time, in the order of time."""
        conditions = [usage.c.started_at >= since]
        if account_id is not None:
            conditions.append(usage.c.account_id == account_id)
        if until is not None:
            conditions.append(usage.c.started_at < until)
        order = (usage.c.started_at, usage.c.request_id)
        last = (-1.0, "")
        while True:
            statement = (
                select(usage)
                .where(*conditions, tuple_(*order) > last)
                .order_by(*order)
                .limit(EXPORT_ROWS)
            )
            async with self.store.reading() as connection:
                rows = (await connection.execute(statement)).mappings().all()
            if not rows:
                return
            yield [dict(row) for row in rows]
            last = (rows[-1]["started_at"], rows[-1]["request_id"])

    async def tokens_in_month(self, account_id: str, month: str) -> int:
        """Return what an account has used in a calendar month, such as `2026-11`, UTC."""
        statement = select(usage_months.c.tokens).where(
            usage_months.c.account_id == account_id, usage_months.c.month == month
        )
        async with self.store.reading() as connection:
            return int(await connection.scalar(statement) or 0)

    async def _write(self) -> None:
        """Commit groups until the queue is empty; a group leaves it only once it is durable."""
        retry_s = _FIRST_RETRY_S
        while self._queue:
            group = [self._queue[index] for index in range(min(MAX_BATCH, len(self._queue)))]
            try:
                await self._commit(group)
            except Overloaded:
                await asyncio.sleep(retry_s)
                retry_s = min(_LAST_RETRY_S, retry_s * 2)
                continue
            retry_s = _FIRST_RETRY_S
            for _ in group:
                self._queue.popleft()

    async def _commit(self, group: list[_Queued]) -> None:
        """Commit a group; one that cannot be is split, so that a bad record fails alone."""
        try:
            records = [queued.record for queued in group]
            await self.store.write(partial(_insert, records=records))
        except Overloaded:
            raise
        except Exception as error:
            if len(group) > 1:
                for queued in group:
                    await self._commit([queued])
                return
            lost = json.dumps(asdict(group[0].record))
            _log.error("usage was not recorded (%s): %s", type(error).__name__, lost)
            _finish(group[0].done, ServerError("The request's usage could not be recorded."))
            return
        for queued in group:
            _finish(queued.done, None)


_values = attrgetter(*(column.name for column in usage.c))
_sums = attrgetter(*(total.name for total in fields(UsageTotals)))


def _insert(batch: Batch, records: list[UsageRecord]) -> None:
    """Insert the records that are new, and add them to their accounts' hours and months."""
    new = batch.insert_new(usage, [_values(record) for record in records])
    hours: dict[tuple[str, int, str, str], UsageTotals] = {}
    months: dict[tuple[str, str], UsageTotals] = {}
    for record in records:
        if record.request_id not in new:
            continue
        new.remove(record.request_id)  # the first of several is the one that was inserted
        totals = UsageTotals.of(record)
        hour = int(record.started_at // HOUR_S * HOUR_S)
        key = (record.account_id, hour, record.model, record.key_id or "")
        hours[key] = hours[key] + totals if key in hours else totals
        month = (record.account_id, month_of(record.started_at))
        months[month] = months[month] + totals if month in months else totals
    if hours:
        by_hour = [(*key, *_sums(totals)) for key, totals in sorted(hours.items())]
        by_month = [
            (*key, totals.requests, totals.prompt_tokens + totals.completion_tokens)
            for key, totals in sorted(months.items())
        ]
        batch.insert_sums(usage_hours, by_hour)
        batch.insert_sums(usage_months, by_month)


def _row(found: RowMapping) -> UsageRow:
    totals = UsageTotals(
        int(found["requests"]),
        int(found["prompt_tokens"]),
        int(found["completion_tokens"]),
        int(found["cached_tokens"]),
        float(found["cost"]),
    )
    start = found.get("start")
    return UsageRow(
        start=None if start is None else int(start),
        account_id=found.get("account"),
        model=found.get("model"),
        key_id=found.get("key") or None,
        totals=totals,
    )


def month_of(seconds: float) -> str:
    """Return the calendar month of a time, UTC, such as `2026-11`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m")


def _finish(done: asyncio.Future[None], error: OMAiError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _seen(done: asyncio.Future[None]) -> None:
    """Look at the outcome, even where its caller has gone away."""
    if not done.cancelled():
        done.exception()
