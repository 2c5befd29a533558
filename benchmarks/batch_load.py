"""What benchmarks/batch.py does to a server: batches, and requests online beside them."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openai import AsyncOpenAI, OpenAI
from openai.types import Batch

Endpoint = Literal["/v1/chat/completions", "/v1/embeddings"]
UNFINISHED = ("validating", "in_progress", "finalizing")
POLL_S = 1.0  # each costs the ingress some CPU time
PATIENCE_S = 1800.0
ONLINE_SHARE = 0.3  # of the time, alone
SEED = 11


@dataclass(frozen=True)
class Done:
    """How a batch went. tokens: generated.

    start_s: from in_progress to its first line's start; whole_s: from in_progress to completed.
    """

    lines: int
    tokens: int
    start_s: float
    whole_s: float


class Server:
    """A running platform, as its clients see it; how long things took, its database says."""

    def __init__(self, address: str, key: str, state: Path) -> None:
        self._address, self._key = f"{address}/v1", key
        self._database = state / "omai.db"
        self.client = OpenAI(base_url=self._address, api_key=key, max_retries=0)

    def online(self) -> AsyncOpenAI:
        """Return a client for a loop of its own."""
        return AsyncOpenAI(base_url=self._address, api_key=self._key, max_retries=0)

    def run(self, endpoint: Endpoint, bodies: list[dict[str, Any]]) -> Done:
        """Have requests answered as a batch. Raises SystemExit where not all of them were."""
        batch = self._submit(endpoint, bodies)
        seen = self._wait(batch, lambda seen: seen.status not in UNFINISHED)
        counts = seen.request_counts
        if seen.status != "completed" or counts is None or counts.completed != len(bodies):
            raise SystemExit(f"a batch of {len(bodies)} lines was {seen.status}: {counts}")
        return self._done(batch, len(bodies))

    @contextmanager
    def beside(self, endpoint: Endpoint, bodies: list[dict[str, Any]]) -> Iterator[None]:
        """Have requests answered as a batch meanwhile. Raises SystemExit where it ends before."""
        batch = self._submit(endpoint, bodies)
        self._wait(batch, lambda seen: bool(seen.request_counts and seen.request_counts.completed))
        yield
        status = self.client.batches.cancel(batch).status
        if status != "cancelling":
            raise SystemExit(f"the batch was {status} before the requests beside it were answered")
        self._wait(batch, lambda seen: seen.status == "cancelled")

    def _submit(self, endpoint: Endpoint, bodies: list[dict[str, Any]]) -> str:
        lines = [
            json.dumps({"custom_id": str(number), "method": "POST", "url": endpoint, "body": body})
            for number, body in enumerate(bodies)
        ]
        content = "\n".join(lines).encode()
        file = self.client.files.create(file=("input.jsonl", content), purpose="batch")
        return self.client.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window="24h"
        ).id

    def _wait(self, batch: str, until: Callable[[Batch], bool]) -> Batch:
        deadline = time.monotonic() + PATIENCE_S
        while not until(seen := self.client.batches.retrieve(batch)):
            if time.monotonic() > deadline:
                raise SystemExit(f"a batch is {seen.status} after {PATIENCE_S:.0f} s")
            time.sleep(POLL_S)
        return seen

    def _done(self, batch: str, lines: int) -> Done:
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as database:
            began, ended = database.execute(
                "SELECT in_progress_at, completed_at FROM batches WHERE id = ?", (batch,)
            ).fetchone()
            first, tokens = database.execute(
                "SELECT min(started_at), sum(completion_tokens) FROM usage WHERE batch_id = ?",
                (batch,),
            ).fetchone()
        return Done(lines, tokens, first - began, ended - began)


def first_tokens(
    server: Server, bodies: list[dict[str, Any]], gap_s: float
) -> tuple[list[float], list[float]]:
    """Ask online, at random moments a gap apart on average, the same ones each time.

    Returns the seconds to each first token, and to each last one.
    """

    async def one(client: AsyncOpenAI, body: dict[str, Any]) -> tuple[float, float]:
        started, first = time.perf_counter(), 0.0
        async for chunk in await client.chat.completions.create(**body, stream=True):
            if not first and chunk.choices and chunk.choices[0].delta.content:
                first = time.perf_counter() - started
        if not first:
            raise SystemExit("an answer has no text")
        return first, time.perf_counter() - started

    async def every() -> list[tuple[float, float]]:
        rng, tasks = random.Random(SEED), []
        async with server.online() as client:
            await client.models.list()  # the connection is there
            for body in bodies:
                tasks.append(asyncio.create_task(one(client, body)))
                await asyncio.sleep(rng.expovariate(1 / gap_s))
            return await asyncio.gather(*tasks)

    firsts, lasts = zip(*asyncio.run(every()), strict=True)
    return list(firsts), list(lasts)
