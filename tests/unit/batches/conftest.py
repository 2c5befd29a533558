"""Batches over a real database and directory; what answers their lines is the test's."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from omai_ray.batches.answering import Answered, Answers, LineRequest, UnitWorker
from omai_ray.batches.batches import Batches
from omai_ray.batches.driver import Driver, Executor, Rules
from omai_ray.batches.queue import BatchQueue
from omai_ray.batches.watch import Sleep
from omai_ray.catalog import Catalog, ModelSpec
from omai_ray.errors import ServerError
from omai_ray.files import Contents, Files
from omai_ray.identity.directory import Directory
from omai_ray.ledger import UsageRecord
from omai_ray.settings import Tier
from omai_ray.store import Batch, BatchUnit, File, Store
from omai_ray.store.tables import accounts

CHAT = "/v1/chat/completions"
LEASE_S = 15.0
MODELS = (
    ModelSpec(name="omai-gpt-4", task="chat", source="unused"),
    ModelSpec(name="other", task="chat", source="unused"),
    ModelSpec(name="emb", task="embedding", source="unused"),
)
TIERS = {
    "pro": Tier(requests_per_minute=1, tokens_per_minute=1, batch_enqueued_tokens=1000),
    "enterprise": Tier(requests_per_minute=None, tokens_per_minute=None),
}


def request(custom_id: str, text: str = "hello", **changes: Any) -> dict[str, Any]:
    """Return a line of an input."""
    body = {"model": "omai-gpt-4", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def jsonl(lines: Sequence[Any]) -> bytes:
    """Return an input; a text is a line as it is."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    return "".join(f"{text}\n" for text in texts).encode()


async def briefly(_: float) -> None:
    """Sleep no longer than others need to go on."""
    await asyncio.sleep(0.005)


async def forever(_: float) -> None:
    """Never wake: for a life in which nothing has to be waited for."""
    await asyncio.Event().wait()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Echo:
    """Answers with the request's own text; counts how often each line was asked.

    statuses: what lines are answered with, by their text, in turn; the last one ever after.
    """

    statuses: dict[str, list[int]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    used: set[str] = field(default_factory=set)
    before: Callable[[LineRequest], Awaitable[None]] | None = None

    async def answer(self, request: LineRequest) -> Answered:
        if self.before is not None:
            await self.before(request)
        text = json.loads(request.body)["messages"][0]["content"]
        self.asked[request.usage_id] += 1
        statuses = self.statuses.get(text, [200])
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        if status != 200:
            return Answered(status, json.dumps(ServerError("no").envelope()).encode())
        self.used.add(request.usage_id)
        return Answered(200, json.dumps({"echo": text}).encode(), _usage(request))


def _usage(request: LineRequest) -> UsageRecord:
    return UsageRecord(
        request.usage_id,
        request.principal.account_id,
        None,
        "omai-gpt-4",
        request.endpoint,
        200,
        prompt_tokens=3,
        completion_tokens=2,
        cached_tokens=1,
        started_at=0.0,
        duration_ms=1,
        batch_id=request.batch_id,
    )


class InTurn:
    """An executor in this process: one unit after the other."""

    def __init__(self, worker: UnitWorker) -> None:
        self._worker = worker

    async def run(self, batch: Batch, units: Sequence[BatchUnit]) -> None:
        for unit in units:
            await self._worker.do(unit)


@dataclass
class World:
    """All of it; an account to own batches."""

    store: Store
    contents: Contents
    clock: Clock = field(default_factory=Clock)
    account: str = "acct_1"

    def __post_init__(self) -> None:
        self.files = Files(self.store, self.contents, self.clock)
        self.batches = Batches(self.store, self.files, self.clock)
        self.queue = BatchQueue(self.store, self.files, self.clock)
        self.rules = Rules(Catalog(MODELS, {"gpt-4": "omai-gpt-4"}), TIERS, longest=2000)

    async def open_account(self, name: str, tier: str = "enterprise") -> None:
        row = {"id": name, "name": name, "tier": tier, "status": "active", "created": 0.0}
        async with self.store.writing() as connection:
            await connection.execute(insert(accounts).values(**row))

    async def upload(self, content: bytes, account: str | None = None) -> File:
        async with self.files.uploading(account or self.account) as upload:
            await upload.write(content)
            return await upload.finish("input.jsonl", "batch")

    async def submit(
        self, lines: Sequence[Any], account: str | None = None, **options: Any
    ) -> Batch:
        file = await self.upload(jsonl(lines), account)
        options = {"endpoint": CHAT, **options}
        return await self.batches.create(
            account or self.account, None, input_file_id=file.id, **options
        )

    def worker(
        self,
        answers: Answers,
        queue: Any = None,
        contents: Any = None,
        sleep: Sleep = briefly,
        watch_s: float = 0.005,
    ) -> UnitWorker:
        return UnitWorker(
            queue or self.queue,
            contents or self.contents,
            answers,
            Directory(self.store).owner,
            8,
            clock=self.clock,
            sleep=sleep,
            watch_s=watch_s,
        )

    def driver(
        self,
        executor: Executor,
        queue: Any = None,
        contents: Any = None,
        sleep: Sleep = briefly,
    ) -> Driver:
        return Driver(
            queue or self.queue,
            contents or self.contents,
            executor,
            Directory(self.store).owner,
            self.rules,
            max_running=2,
            lease_s=LEASE_S,
            grace_s=5.0,
            clock=self.clock,
            sleep=sleep,
        )

    async def drive(self, driver: Driver) -> None:
        """Have a driver take what is free to its end."""
        claimed = await self.queue.claim(driver.holder, LEASE_S)
        await asyncio.gather(*(driver.drive(batch) for batch in claimed))

    async def run(self, lines: Sequence[Any], answers: Answers, **options: Any) -> Batch:
        """Submit a batch and take it to its end."""
        batch = await self.submit(lines, **options)
        await self.drive(self.driver(InTurn(self.worker(answers))))
        return await self.queue.read(batch.id)

    async def read_file(self, file: str | None) -> list[dict[str, Any]]:
        """Return a file's lines, none for no file."""
        if file is None:
            return []
        content = await self.files.open(await self.files.get(self.account, file))
        try:
            data = b"".join([chunk async for chunk in content.chunks()])
        finally:
            await content.close()
        return [json.loads(line) for line in data.splitlines()]

    async def results(self, batch: Batch) -> dict[str, Any]:
        """Return what became of each custom_id: its answer, status or error; once each."""
        lines = await self.read_file(batch.output_file_id)
        lines += await self.read_file(batch.error_file_id)
        found = {}
        for line in lines:
            assert line["custom_id"] not in found, "answered twice"
            response = line["response"]
            if response is None:
                found[line["custom_id"]] = line["error"]["code"]
            else:
                assert line["error"] is None
                succeeded = response["status_code"] == 200
                what = response["body"]["echo"] if succeeded else response["status_code"]
                found[line["custom_id"]] = what
        return found


@pytest.fixture
async def world(store: Store, tmp_path: Path) -> AsyncIterator[World]:
    """Return batches of one account, over a new database of either kind."""
    contents = Contents.at(str(tmp_path / "files"))
    world = World(store, contents)
    await world.open_account(world.account)
    yield world
    contents.close()
