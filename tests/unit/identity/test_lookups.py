from __future__ import annotations

import asyncio
from typing import Any

import pytest

from omai_ray.errors import Overloaded, ServerError
from omai_ray.identity.lookups import Lookups


class Source:
    """A database of texts that counts its queries, and can be held or away."""

    def __init__(self) -> None:
        self.rows = {"k": "old"}
        self.queries = 0
        self.error: Exception | None = None
        self.let = asyncio.Event()
        self.let.set()

    async def load(self, name: str) -> str | None:
        self.queries += 1
        found = self.rows.get(name)
        await self.let.wait()
        if self.error is not None:
            raise self.error
        return found


@pytest.fixture
def source() -> Source:
    """Return a database with one row, `k`."""
    return Source()


@pytest.fixture
def lookups(source: Source, clock: Any) -> Lookups[str]:
    """Return its cache, of three entries."""
    return Lookups(source.load, clock, patience_s=0.01, max_entries=3)


async def test_an_entry_is_believed_for_its_time_only(
    lookups: Lookups[str], source: Source, clock: Any
) -> None:
    """A change is seen after five seconds, on every replica."""
    assert "old" == await lookups.get("k")
    source.rows["k"] = "new"
    clock.now_s += 4.99
    assert "old" == await lookups.get("k")
    clock.now_s += 0.01
    assert ("new", 2) == (await lookups.get("k"), source.queries)


async def test_absence_is_never_remembered(lookups: Lookups[str], source: Source) -> None:
    """A new key works at once."""
    assert await lookups.get("n") is None
    source.rows["n"] = "here"
    assert "here" == await lookups.get("n")


async def test_a_deleted_entry_does_not_bridge(
    lookups: Lookups[str], source: Source, clock: Any
) -> None:
    """Once seen gone it is gone, outage or not."""
    await lookups.get("k")
    del source.rows["k"]
    clock.now_s += 5.0
    assert await lookups.get("k") is None
    source.error = Overloaded("away")
    with pytest.raises(Overloaded):
        await lookups.get("k")


async def test_all_who_ask_at_once_share_one_query(lookups: Lookups[str], source: Source) -> None:
    """Also when the first of them leaves."""
    source.let.clear()
    tasks = [asyncio.create_task(lookups.get("k")) for _ in range(50)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    source.let.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert ["old"] * 49 == answers[1:]
    assert 1 == source.queries


async def test_an_outage_is_bridged_for_a_minute(
    lookups: Lookups[str], source: Source, clock: Any
) -> None:
    """Then, and for entries never seen, it fails closed."""
    await lookups.get("k")
    source.error = Overloaded("away")
    for _ in range(11):
        clock.now_s += 5.0
        assert "old" == await lookups.get("k")
    with pytest.raises(Overloaded):
        await lookups.get("other")
    clock.now_s += 5.0
    with pytest.raises(Overloaded):
        await lookups.get("k")


async def test_a_database_that_is_away_is_asked_once_a_second(
    lookups: Lookups[str], source: Source, clock: Any
) -> None:
    """Its callers do not queue up for its time limit."""
    source.error = Overloaded("away")
    for _ in range(20):
        with pytest.raises(Overloaded):
            await lookups.get("other")
    assert 1 == source.queries
    clock.now_s += 1.0
    source.error = None
    assert "old" == await lookups.get("k")


async def test_a_slow_database_is_not_waited_for_when_an_entry_can_bridge(
    lookups: Lookups[str], source: Source, clock: Any
) -> None:
    """Its answer counts when it comes."""
    await lookups.get("k")
    source.rows["k"] = "new"
    source.let.clear()
    clock.now_s += 5.0
    assert "old" == await lookups.get("k")
    source.let.set()
    await asyncio.gather(*lookups._tasks)
    assert "new" == await lookups.get("k")


async def test_what_is_forgotten_is_asked_for_again(lookups: Lookups[str], source: Source) -> None:
    """An answer on its way may predate the change: it is given, and not kept."""
    source.let.clear()
    task = asyncio.create_task(lookups.get("k"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    lookups.forget("k")
    source.rows["k"] = "new"
    source.let.set()

    assert ("old", "new") == (await task, await lookups.get("k"))


async def test_a_defect_is_not_bridged(lookups: Lookups[str], source: Source, clock: Any) -> None:
    """Only an outage is."""
    await lookups.get("k")
    source.error = ServerError("defect")
    clock.now_s += 5.0
    with pytest.raises(ServerError):
        await lookups.get("k")


async def test_entries_are_bounded(lookups: Lookups[str], source: Source) -> None:
    """The oldest go first."""
    source.rows = {str(number): "x" for number in range(10)}
    for name in source.rows:
        await lookups.get(name)

    assert ["7", "8", "9"] == list(lookups._known)


async def test_closing_ends_what_is_being_loaded(lookups: Lookups[str], source: Source) -> None:
    """Nobody is left waiting."""
    source.let.clear()
    task = asyncio.create_task(lookups.get("k"))
    await asyncio.sleep(0)
    await lookups.close()
    with pytest.raises(asyncio.CancelledError):
        await task
