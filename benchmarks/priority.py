"""What people who wait notice of a batch that keeps their replica full.

`python benchmarks/priority.py [--quick] [--source DIRECTORY]`: one chat engine in this process, of
the built-in model unless a checkpoint is named. Requests arrive online at random moments; their
times to a first token are taken alone and beside a batch, in turns, the same arrivals each time.
Ends with one line of JSON; online_ttft_ratio is of the medians. Other work on the machine makes
the figures useless.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from omai_ray.catalog import ModelSpec  # noqa: E402
from omai_ray.engines.chat.batching_engine import BatchingEngine  # noqa: E402
from omai_ray.engines.chat.protocol import GenerationRequest, SamplingParams  # noqa: E402
from omai_ray.engines.device import limit_threads  # noqa: E402
from omai_ray.priority import Priority  # noqa: E402

PROMPT_TOKENS, NEW_TOKENS = 128, 32
ONLINE_SHARE = 0.3  # of the time, alone
SEED = 11


class Load:
    """Both kinds of requests to one engine. batch_tokens: that batches were given."""

    def __init__(self, source: str, threads: int) -> None:
        limit_threads(threads)
        self._spec = ModelSpec(name="m", task="chat", source=source, num_cpus=threads)
        self._engine = BatchingEngine(self._spec)
        self._engine.start()
        self._numbers = itertools.count()
        self._random = random.Random(SEED)
        self.batch_tokens = 0
        self._batch_began = asyncio.Event()

    async def one(self, priority: Priority) -> tuple[float, float]:
        """Answer a prompt never seen before; return the seconds to its first and last token."""
        name = str(next(self._numbers))
        words = self._engine.vocab_size
        prompt = [self._random.randrange(3, words) for _ in range(PROMPT_TOKENS)]
        stop = dict.fromkeys(self._engine.stop_token_ids, -100.0)
        sampling = SamplingParams(temperature=0, logit_bias=stop)
        request = GenerationRequest(name, prompt, NEW_TOKENS, sampling, name, priority=priority)
        started, first = time.perf_counter(), 0.0
        async for output in self._engine.generate(request):
            first = first or time.perf_counter() - started
            if priority == "batch":
                self.batch_tokens += len(output.token_ids)
                self._batch_began.set()
        return first, time.perf_counter() - started

    async def online(self, gap_s: float, count: int) -> list[float]:
        """Return the first tokens' times of requests that arrive as a Poisson stream."""
        rng, tasks = random.Random(SEED), []
        for _ in range(count):
            tasks.append(asyncio.create_task(self.one("online")))
            await asyncio.sleep(rng.expovariate(1 / gap_s))
        return [first for first, _ in await asyncio.gather(*tasks)]

    @contextlib.asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        """Keep twice as many of a batch's requests here as run at once."""

        async def again() -> None:
            while True:
                await self.one("batch")

        self._batch_began.clear()
        count = 2 * self._spec.max_running_requests
        tasks = [asyncio.create_task(again()) for _ in range(count)]
        await self._batch_began.wait()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(self) -> None:
        """End the engine."""
        await self._engine.drain()


async def measure(load: Load, rounds: int, count: int) -> dict[str, float]:
    """Return what was measured."""
    for _ in range(3):
        _, whole_s = await load.one("online")
    gap_s = whole_s / ONLINE_SHARE
    times: dict[str, list[float]] = {"alone": [], "beside": []}
    batch_s, batch_tokens = 0.0, 0
    for _ in range(rounds):
        times["alone"] += await load.online(gap_s, count)
        async with load.batch():
            started, before = time.perf_counter(), load.batch_tokens
            times["beside"] += await load.online(gap_s, count)
            batch_s += time.perf_counter() - started
            batch_tokens += load.batch_tokens - before
    found = {"online_requests_per_s": 1 / gap_s, "batch_tokens_per_s": batch_tokens / batch_s}
    for name, seconds in times.items():
        found[f"online_ttft_p50_ms_{name}"] = 1000 * statistics.median(seconds)
        found[f"online_ttft_p95_ms_{name}"] = 1000 * statistics.quantiles(seconds, n=20)[-1]
    p50, p95 = (
        found[f"online_ttft_{part}_ms_beside"] / found[f"online_ttft_{part}_ms_alone"]
        for part in ("p50", "p95")
    )
    return {**found, "online_ttft_p95_ratio": p95, "online_ttft_ratio": p50}


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--source", default="builtin:omai-chat-small", help="a checkpoint")
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    load = Load(arguments.source, threads)
    rounds, count = (2, 20) if arguments.quick else (4, 80)
    found = await measure(load, rounds, count)
    await load.drain()
    for name, value in found.items():
        print(f"{name:32} {value:10.2f}")
    print(
        json.dumps(
            {
                "source": arguments.source,
                "cpus": threads,
                "machine": platform.machine(),
                **{name: round(value, 3) for name, value in found.items()},
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
