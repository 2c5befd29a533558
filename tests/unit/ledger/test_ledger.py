from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from sqlalchemy import func, insert, select

from omai_ray.errors import Overloaded, ServerError
from omai_ray.ledger import UsageLedger, UsageRecord, UsageRow, UsageTotals, ledger
from omai_ray.store import Store
from omai_ray.store.batches import Batch
from omai_ray.store.tables import usage
from tests.databases import held

ONE = UsageRecord(
    request_id="req_1",
    account_id="acct_1",
    key_id="key_1",
    model="omai-gpt-4",
    endpoint="/v1/chat/completions",
    status=200,
    prompt_tokens=9,
    completion_tokens=12,
    cached_tokens=4,
    started_at=1000.0,
    duration_ms=250,
    finish_reason="stop",
)


def numbered(number: int, **changes: Any) -> UsageRecord:
    """Return another record."""
    return replace(ONE, request_id=f"req_{number}", **changes)


async def rows(store: Store) -> int:
    """Count the stored records."""
    async with store.reading() as connection:
        return int(await connection.scalar(select(func.count()).select_from(usage)) or 0)


class Gated:
    """A store whose transactions begin when they are let; counts the commits."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.let = asyncio.Event()
        self.reached = asyncio.Event()
        self.commits = 0

    async def write(self, work: Callable[[Batch], Any]) -> Any:
        self.reached.set()
        await self.let.wait()
        result = await self.store.write(work)
        self.commits += 1
        return result


async def queue(kept: UsageLedger, *records: UsageRecord) -> list[asyncio.Task[None]]:
    """Start recording, and return once all of it is queued."""
    tasks = [asyncio.create_task(kept.record(record)) for record in records]
    await asyncio.sleep(0)  # each runs until it waits for its commit
    return tasks


async def test_a_record_is_durable_when_record_returns(store: Store, database_url: str) -> None:
    """Another process reads all of it."""
    await UsageLedger(store).record(ONE)

    other = await Store.open(database_url)
    async with other.reading() as connection:
        found = (await connection.execute(select(usage))).all()
    await other.close()
    assert [tuple(getattr(ONE, column.name) for column in usage.c)] == found


async def test_a_request_is_counted_once(store: Store) -> None:
    """However often it is recorded: within a group, in another, from another process."""
    kept, other = UsageLedger(store), UsageLedger(store)
    await asyncio.gather(*(kept.record(ONE) for _ in range(5)))
    await other.record(replace(ONE, completion_tokens=99))

    assert UsageTotals(1, 9, 12, 4) == await kept.totals("acct_1")


async def test_records_that_wait_for_a_commit_share_the_next_one(store: Store) -> None:
    """A hundred streams that end at once cost two transactions."""
    gated = Gated(store)
    kept = UsageLedger(gated)  # type: ignore[arg-type]
    first = await queue(kept, numbered(0))
    await gated.reached.wait()
    rest = await queue(kept, *(numbered(number) for number in range(1, 100)))
    gated.let.set()
    await asyncio.gather(*first, *rest)

    assert (2, 100) == (gated.commits, await rows(store))


async def test_groups_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement has a limited number of parameters."""
    monkeypatch.setattr(ledger, "MAX_BATCH", 10)
    gated = Gated(store)
    gated.let.set()
    kept = UsageLedger(gated)  # type: ignore[arg-type]
    await asyncio.gather(*(kept.record(numbered(number)) for number in range(35)))

    assert (4, 35) == (gated.commits, await rows(store))


@pytest.mark.fault(8)
async def test_a_locked_database_delays_records_and_loses_none(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are tried again until it is free."""
    monkeypatch.setattr("omai_ray.store.store.DEADLINE_S", 0.2)
    kept = UsageLedger(store)
    async with held(database_url):
        tasks = await queue(kept, *(numbered(number) for number in range(20)))
        with pytest.raises(Overloaded):
            async with store.writing() as connection:
                await connection.execute(insert(usage).values(**asdict(numbered(99))))
        assert 0 == await rows(store)
    await asyncio.gather(*tasks)

    assert UsageTotals(20, 180, 240, 80) == await kept.totals("acct_1")


async def test_a_caller_waits_for_a_limited_time_and_its_record_for_longer(
    store: Store,
) -> None:
    """The client gets its 503; the record is committed once that is possible."""
    gated = Gated(store)
    kept = UsageLedger(gated, patience_s=0.01)  # type: ignore[arg-type]
    with pytest.raises(Overloaded):
        await kept.record(ONE)
    gated.let.set()
    await kept.close()

    assert 1 == await rows(store)


async def test_a_cancelled_caller_leaves_its_record_behind(store: Store) -> None:
    """What was used was used."""
    gated = Gated(store)
    kept = UsageLedger(gated)  # type: ignore[arg-type]
    (task,) = await queue(kept, ONE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gated.let.set()
    await kept.close()

    assert 1 == await rows(store)


async def test_the_queue_is_bounded(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is refused, and logged in full."""
    gated = Gated(store)
    kept = UsageLedger(gated, max_queued=2)  # type: ignore[arg-type]
    tasks = await queue(kept, numbered(1), numbered(2))
    with pytest.raises(Overloaded):
        await kept.record(numbered(3))
    gated.let.set()
    await asyncio.gather(*tasks)

    assert '"request_id": "req_3"' in caplog.text
    assert 2 == await rows(store)


async def test_closing_commits_what_is_queued(store: Store) -> None:
    """And takes nothing more."""
    gated = Gated(store)
    kept = UsageLedger(gated)  # type: ignore[arg-type]
    tasks = await queue(kept, *(numbered(number) for number in range(10)))
    gated.let.set()
    await kept.close()
    await asyncio.gather(*tasks)

    assert 10 == await rows(store)
    with pytest.raises(Overloaded):
        await kept.record(numbered(11))


async def test_closing_without_a_database_logs_what_is_lost(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It can be entered by hand, and nobody waits for ever."""
    kept = UsageLedger(Gated(store))  # type: ignore[arg-type]
    (task,) = await queue(kept, ONE)
    await kept.close(timeout_s=0.01)
    with pytest.raises(Overloaded):
        await task

    assert '"completion_tokens": 12' in caplog.text


async def test_a_record_that_cannot_be_stored_fails_alone(store: Store) -> None:
    """Its group is committed without it."""
    gated = Gated(store)
    kept = UsageLedger(gated)  # type: ignore[arg-type]
    records = [numbered(1), numbered(2, prompt_tokens=2**70), numbered(3, model=None), numbered(4)]
    tasks = await queue(kept, *records)
    gated.let.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(None), ServerError, ServerError, type(None)] == [type(o) for o in outcomes]
    assert 2 == await rows(store)


async def test_a_report_has_what_was_used_grouped_as_it_is_asked_for(store: Store) -> None:
    """By hour or day, account, model and key; within whole hours. Nobody sees another account's."""
    kept = UsageLedger(store)
    day_s = 1_793_491_200.0  # 2026-11-01T00:00:00Z
    for record in (
        numbered(1, started_at=day_s - 1),
        numbered(2, started_at=day_s + 10),
        numbered(3, started_at=day_s + 20, key_id=None, cost=0.5),
        numbered(4, started_at=day_s + 3600, model="ada-002", completion_tokens=0, cost=0.25),
        numbered(5, started_at=day_s + 3601, account_id="acct_2"),
    ):
        await kept.record(record)
    one = UsageTotals.of(ONE)

    assert [UsageRow(None, None, None, None, UsageTotals(4, 36, 36, 16, 0.75))] == (
        await kept.report("acct_1")
    )
    assert [("ada-002", 1, 0.25), ("omai-gpt-4", 3, 0.5)] == [
        (row.model, row.totals.requests, row.totals.cost)
        for row in await kept.report("acct_1", by=["model"])
    ]
    assert [(day_s - 86_400, 1), (day_s, 3)] == [
        (row.start, row.totals.requests) for row in await kept.report("acct_1", by=["day"])
    ]
    hours = await kept.report("acct_1", day_s + 5, day_s + 30, by=["hour", "key"])
    assert [(day_s, None, 1), (day_s, "key_1", 1)] == [
        (row.start, row.key_id, row.totals.requests) for row in hours
    ]
    assert [("acct_1", 4), ("acct_2", 1)] == [
        (row.account_id, row.totals.requests) for row in await kept.report(by=["account"])
    ]
    assert one == await kept.totals("acct_2")
    assert UsageTotals() == await kept.totals("acct_3")
    assert [] == await kept.report("acct_1", day_s + 7200)


async def test_records_are_exported_whole_and_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page at a time."""
    monkeypatch.setattr(ledger, "EXPORT_ROWS", 7)
    kept = UsageLedger(store)
    records = [numbered(number, started_at=float(number)) for number in range(30)]
    await asyncio.gather(*(kept.record(record) for record in records))
    pages = [page async for page in kept.export("acct_1", 5.0, 25.0)]

    assert [7, 7, 6] == [len(page) for page in pages]
    expected = {record.request_id: asdict(record) for record in records[5:25]}
    assert expected == {row["request_id"]: row for page in pages for row in page}


async def test_a_month_has_the_sum_of_its_records(store: Store) -> None:
    """Each once, in the calendar month that it began in, UTC."""
    kept, other = UsageLedger(store), UsageLedger(store)
    november_s = 1_793_491_200.0  # 2026-11-01T00:00:00Z
    before = [numbered(1, started_at=november_s - 0.001), numbered(2, account_id="acct_2")]
    within = [numbered(number, started_at=november_s + number) for number in range(3, 60)]
    await asyncio.gather(*(kept.record(record) for record in before + within + within))
    await asyncio.gather(*(other.record(record) for record in within))

    assert 21 == await kept.tokens_in_month("acct_1", "2026-10")
    assert 57 * 21 == await kept.tokens_in_month("acct_1", "2026-11")
    assert 21 == await kept.tokens_in_month("acct_2", "1970-01")
    assert 0 == await kept.tokens_in_month("acct_2", "2026-11")


async def test_processes_that_add_to_the_same_months_do_not_wait_for_each_other(
    store: Store, database_url: str
) -> None:
    """None gives up in a deadlock, and the sums are whole."""
    stores = [await Store.open(database_url) for _ in range(3)]
    kept = [UsageLedger(opened) for opened in stores]
    records = [
        numbered(100 * process + number, account_id=f"acct_{(number * 7 + process) % 10}")
        for process in range(3)
        for number in range(100)
    ]
    await asyncio.gather(*(kept[index % 3].record(record) for index, record in enumerate(records)))
    sums = [await kept[0].tokens_in_month(f"acct_{number}", "1970-01") for number in range(10)]
    for opened in stores:
        await opened.close()

    assert [30 * 21] * 10 == sums
