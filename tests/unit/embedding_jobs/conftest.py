"""Embedding jobs over a real database; what does them is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from omai_ray.catalog import Catalog, ModelSpec, Price
from omai_ray.embedding_jobs.driver import JobDriver, JobRules
from omai_ray.embedding_jobs.jobs import EmbeddingJobs
from omai_ray.embedding_jobs.locations import AllowedLocations
from omai_ray.embedding_jobs.queue import Done, JobQueue
from omai_ray.embedding_jobs.runner import Joined, Measured
from omai_ray.files import Contents, Files
from omai_ray.identity.directory import Directory
from omai_ray.ledger import UsageLedger
from omai_ray.quota.budgets import MonthlyBudgets
from omai_ray.settings import Tier
from omai_ray.store import EmbeddingJob, Store
from omai_ray.store.tables import accounts
from tests.unit.batches.conftest import Clock

LEASE_S = 15.0
ROWS = 10
MODEL = ModelSpec(name="emb", task="embedding", source="unused", price=Price(input=2.0))
TIERS = {
    "pro": Tier(requests_per_minute=1, tokens_per_minute=1, batch_enqueued_tokens=1000),
    "tiny": Tier(requests_per_minute=1, tokens_per_minute=1, batch_enqueued_tokens=30),
    "enterprise": Tier(requests_per_minute=None, tokens_per_minute=None),
}


@dataclass
class Rows:
    """A runner whose rows are numbers, one of them dead; what it committed outlives its runs.

    fail: raised by the next calls, in turn, by the call's name. pause: waited for, once that many
    rows are done; paused is set then. bytes: of the input.
    """

    contents: Contents
    fail: dict[str, list[Exception]] = field(default_factory=dict)
    pause: tuple[int, asyncio.Event] | None = None
    bytes: int = 400
    rows: dict[str, int] = field(default_factory=dict)
    embedded: list[tuple[str, int]] = field(default_factory=list)
    directories: set[str] = field(default_factory=set)
    paused: asyncio.Event = field(default_factory=asyncio.Event)

    def _step(self, name: str) -> None:
        if self.fail.get(name):
            raise self.fail[name].pop(0)

    def _committed(self, job: str) -> Done:
        rows = self.rows.get(job, 0)
        dead = int(rows > 3)
        return Done(rows - dead, dead, 7 * (rows - dead))

    async def measure(self, job: EmbeddingJob) -> Measured:
        self._step("measure")
        return Measured(ROWS, self.bytes)

    async def run(self, job: EmbeddingJob, tell: Callable[[Done], None]) -> None:
        self._step("begin")
        self.directories.add(job.id)
        while self.rows.get(job.id, 0) < ROWS:
            self._step("run")
            row = self.rows.get(job.id, 0)
            if self.pause is not None and row == self.pause[0]:
                self.paused.set()
                await self.pause[1].wait()
            self.embedded.append((job.id, row))
            self.rows[job.id] = row + 1
            tell(self._committed(job.id))
            await asyncio.sleep(0)

    async def done(self, job: EmbeddingJob) -> Done:
        self._step("done")
        return self._committed(job.id)

    async def join(self, job: EmbeddingJob, output: str, error: str) -> Joined:
        self._step("join")
        done = self._committed(job.id)
        sizes: list[int | None] = [None, None]
        for index, (name, rows) in enumerate(((output, done.completed), (error, done.failed))):
            if rows:
                draft = self.contents.draft(name)
                await draft.write(b"x" * rows)
                await draft.complete()
                sizes[index] = rows
        self._step("joined")
        return Joined(*sizes)

    async def leftovers(self) -> Sequence[str]:
        return sorted(self.directories)

    async def discard(self, name: str) -> None:
        self._step("discard")
        self.directories.discard(name)


@dataclass
class World:
    """All of it; an account to own jobs."""

    store: Store
    contents: Contents
    root: Path
    clock: Clock = field(default_factory=Clock)
    account: str = "acct_1"

    def __post_init__(self) -> None:
        self.files = Files(self.store, self.contents, self.clock)
        allowed = AllowedLocations([str(self.root / "corpora")])
        self.jobs = EmbeddingJobs(self.store, self.files, allowed, self.clock)
        self.queue = JobQueue(self.store, self.files, self.clock)
        self.ledger = UsageLedger(self.store)
        self.runner = Rows(self.contents)

    async def open_account(self, name: str, tier: str = "enterprise", **values: Any) -> None:
        row = {"id": name, "name": name, "tier": tier, "status": "active", "created": 0.0}
        async with self.store.writing() as connection:
            await connection.execute(insert(accounts).values(**row, **values))

    async def upload(self, account: str | None = None) -> str:
        async with self.files.uploading(account or self.account) as upload:
            await upload.write(b"PAR1")
            return (await upload.finish("corpus.parquet", "user_data")).id

    async def submit(self, account: str | None = None, **options: Any) -> EmbeddingJob:
        """Create a job over an upload, unless options name a location."""
        if "input" not in options:
            options["input_file"] = await self.upload(account)
        values = {"model": "emb", "task": {"column": "text"}, **options}
        return await self.jobs.create(account or self.account, None, **values)

    def driver(self, queue: Any = None, **options: Any) -> JobDriver:
        budgets = MonthlyBudgets(self.ledger.tokens_in_month, self.clock)
        values: dict[str, Any] = {"max_running": 2, "poll_s": 0.01, "sleep": _briefly, **options}
        return JobDriver(
            queue or self.queue,
            self.runner,
            Directory(self.store).owner,
            self.ledger,
            lambda: JobRules(Catalog((MODEL,), {}), TIERS),
            budgets.require,
            lease_s=LEASE_S,
            clock=self.clock,
            **values,
        )

    async def drive(self, driver: JobDriver | None = None) -> None:
        """Have a driver take what is free to its end."""
        driver = driver or self.driver()
        claimed = await self.queue.claim(driver.holder, LEASE_S)
        await asyncio.gather(*(driver.drive(job) for job in claimed))

    async def run(self, **options: Any) -> EmbeddingJob:
        """Submit a job and take it to its end."""
        job = await self.submit(**options)
        await self.drive()
        return await self.queue.read(job.id)

    async def charged(self, job: EmbeddingJob) -> list[dict[str, Any]]:
        """Return the usage records of a job."""
        exported = self.ledger.export(job.account_id)
        return [r async for records in exported for r in records if r["batch_id"] == job.id]


async def _briefly(_: float) -> None:
    """Sleep no longer than others need to go on."""
    await asyncio.sleep(0.002)


@pytest.fixture
async def world(store: Store, tmp_path: Path) -> AsyncIterator[World]:
    """Return jobs of one account, over a new database of either kind."""
    contents = Contents.at(str(tmp_path / "files"))
    (tmp_path / "corpora").mkdir()
    world = World(store, contents, tmp_path)
    await world.open_account(world.account)
    yield world
    await world.ledger.close()
    contents.close()
