"""How fast, and how exactly, the tiers are kept.

`python benchmarks/quota.py [--quick]`: decisions through the limiter actor on a local Ray, and
through Redis where redis-server is installed; what is admitted of 500 simultaneous requests over
three ingress replicas, and over ten minutes of more load than the tier allows (the clock is the
benchmark's own in both). LiteLLM's limiter runs beside them (`make bench-setup`). Ends with one
line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray  # noqa: E402
from litellm_peer import run_litellm  # noqa: E402

from deployments.limiter import ActorAuthority  # noqa: E402
from omai_ray.quota.buckets import InProcessBuckets  # noqa: E402
from omai_ray.quota.coalescing import CoalescingLimiter  # noqa: E402
from omai_ray.quota.protocol import (  # noqa: E402
    Authority,
    Batch,
    Claim,
    Decision,
    Limits,
    Reservation,
)
from omai_ray.quota.redis_authority import RedisAuthority  # noqa: E402

PRO = Limits(10**9, 10**12)
BASIC = Limits(60, 40_000)
DEADLINE_S = 30.0  # a benchmark must not decide for itself


class Count:
    """Gives numbers in turn."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self) -> str:
        """Return the next one."""
        self._next += 1
        return f"b{os.getpid()}.{self._next}"


async def measure(authority: Authority, concurrency: int, seconds: float) -> dict[str, float]:
    """Return decisions a second, each settled as well, and their latency."""
    limiter = CoalescingLimiter(authority, deadline_s=DEADLINE_S)
    name = Count()
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        claims = (Claim(f"acct_{number}", PRO),)
        while time.perf_counter() < end:
            reservation = Reservation(name(), claims, 500)
            begun = time.perf_counter()
            decision = await limiter.reserve(reservation)
            taken.append(time.perf_counter() - begun)
            assert decision.admitted
            await limiter.settle(reservation, 300)

    begun = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(concurrency)))
    elapsed_s = time.perf_counter() - begun
    assert limiter.fallbacks == 0
    return {"per_s": len(taken) / elapsed_s, "p50_ms": statistics.median(taken) * 1e3}


class StoppedLimiter:
    """An actor whose time stands still."""

    def __init__(self) -> None:
        self._buckets = InProcessBuckets(lambda: 1000.0)

    async def call(self, batch: Batch) -> list[Decision]:
        """Charge, settle and decide."""
        return await self._buckets.call(batch)


class StoppedAuthority:
    """Asks that actor."""

    async def close(self) -> None:
        """Leave it."""

    def __init__(self) -> None:
        self._actor: Any = ray.remote(StoppedLimiter).remote()

    async def call(self, batch: Batch) -> list[Decision]:
        """Ask it."""
        decisions: list[Decision] = await self._actor.call.remote(batch)
        return decisions


async def admitted_of_500(authority: Authority) -> int:
    """Return how many of 500 simultaneous requests of a Basic account three replicas admit."""
    replicas = [CoalescingLimiter(authority, 3, deadline_s=DEADLINE_S) for _ in range(3)]
    claims = (Claim("acct_basic", BASIC),)
    name = Count()
    decisions = await asyncio.gather(
        *(replicas[n % 3].reserve(Reservation(name(), claims, 1)) for n in range(500))
    )
    return sum(decision.admitted for decision in decisions)


def sustained_error(minutes: float = 10.0) -> float:
    """Return how far what is admitted is from the tier, of requests and of tokens, the worse one.

    Ten requests a second of 1 token, and then of 4,000 tokens: requests bind first, then tokens.
    """
    errors = []
    for tokens, unit in ((1, 60.0), (4_000, 40_000.0 / 4_000)):
        now = [1000.0]
        buckets = InProcessBuckets(lambda now=now: now[0])  # type: ignore[misc]
        name, admitted = Count(), 0
        while now[0] < 1000.0 + minutes * 60:
            reservation = Reservation(name(), (Claim("acct", BASIC),), tokens)
            if buckets.reserve_one(reservation).admitted:
                admitted += 1
                buckets.settle_one(reservation.reservation_id, tokens)
            now[0] += 0.1
        expected = unit * (minutes + 1)  # a full bucket, and what refills
        errors.append(abs(admitted - expected) / expected)
    return max(errors)


_LITELLM = """
import asyncio, json, os, sys, time
os.environ["LITELLM_LOG"] = "CRITICAL"
from litellm.caching.caching import DualCache
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.utils import InternalUsageCache
from litellm.proxy.hooks.parallel_request_limiter_v3 import (
    _PROXY_MaxParallelRequestsHandler_v3 as Handler)

async def main(calls):
    cache = DualCache()
    def handler():
        return Handler(internal_usage_cache=InternalUsageCache(cache))
    limiter = handler()
    async def ask(limiter, key):
        data = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        try:
            await limiter.async_pre_call_hook(user_api_key_dict=key, cache=cache, data=data,
                                              call_type="completion")
            return True
        except Exception as error:
            assert getattr(error, "status_code", None) == 429, error
            return False
    basic = UserAPIKeyAuth(api_key="basic", rpm_limit=60, tpm_limit=40000)
    replicas = [handler() for _ in range(3)]
    admitted = sum(await asyncio.gather(*(ask(replicas[n % 3], basic) for n in range(500))))
    free = UserAPIKeyAuth(api_key="free", rpm_limit=10**9, tpm_limit=10**12)
    begun = time.perf_counter()
    for _ in range(calls // 32):
        await asyncio.gather(*(ask(limiter, free) for _ in range(32)))
    print(json.dumps({"admitted": admitted,
                      "per_s": calls // 32 * 32 / (time.perf_counter() - begun)}))

asyncio.run(main(int(sys.argv[1])))
"""


def measure_redis(seconds: float) -> dict[str, float] | None:
    """Return the same of a Redis server of the benchmark's own."""
    if shutil.which("redis-server") is None:
        return None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        return asyncio.run(_with_redis(f"redis://127.0.0.1:{port}/0", seconds))
    finally:
        server.terminate()
        server.wait()


async def _with_redis(url: str, seconds: float) -> dict[str, float]:
    authority = RedisAuthority(url)
    await measure(authority, 8, 0.5)
    busy = await measure(authority, 256, seconds)
    calm = await measure(authority, 32, seconds)
    stopped = RedisAuthority(url, clock=lambda: 1000.0)
    admitted = await admitted_of_500(stopped)
    await authority.close()
    await stopped.close()
    return {"per_s": busy["per_s"], "p50_ms": calm["p50_ms"], "admitted": admitted}


async def _with_actor(seconds: float) -> dict[str, float]:
    authority = ActorAuthority(0, snapshot_s=1.0)
    await measure(authority, 8, 1.0)
    busy = await measure(authority, 256, seconds)
    calm = await measure(authority, 32, seconds)
    admitted = await admitted_of_500(StoppedAuthority())
    return {"per_s": busy["per_s"], "p50_ms": calm["p50_ms"], "admitted": admitted}


def with_ray(use: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Run something on a local Ray."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        return use()
    finally:
        ray.shutdown()


def main() -> None:
    """Measure, print a table, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three seconds a part")
    args = parser.parse_args()
    seconds = 3.0 if args.quick else 10.0
    actor = with_ray(lambda: asyncio.run(_with_actor(seconds)))
    figures: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "cpu": platform.machine(),
        "python": platform.python_version(),
        "ray": ray.__version__,
        "decisions_per_s": actor["per_s"],
        "added_latency_p50_ms": actor["p50_ms"],
        "basic_admitted_of_500": int(actor["admitted"]),
        "sustained_error": sustained_error(),
    }
    redis = measure_redis(seconds)
    if redis is not None:
        figures |= {
            "redis_decisions_per_s": redis["per_s"],
            "redis_added_latency_p50_ms": redis["p50_ms"],
            "redis_basic_admitted_of_500": int(redis["admitted"]),
        }
    litellm = run_litellm(_LITELLM, 2_000 if args.quick else 10_000)
    if litellm is not None:
        figures |= {
            "litellm_decisions_per_s": litellm["per_s"],
            "litellm_basic_admitted_of_500": int(litellm["admitted"]),
            "vs_litellm": actor["per_s"] / litellm["per_s"],
        }
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    for name, value in rounded.items():
        print(f"{name:30} {value}")
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
