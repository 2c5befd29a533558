"""What it costs to know who is calling, and what logins cost everybody else.

`python benchmarks/identity.py [--quick] [--postgresql URL]`: key checks, cached and not, over a
small and a large database (100,000 accounts, 300,000 keys); the delay that a storm of logins causes
other requests; and whether a wrong key's answer tells where it is wrong. LiteLLM's own key check
runs beside it (`make bench-setup`). Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import insert

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from litellm_peer import run_litellm

from omai_ray.errors import Unauthorized
from omai_ray.identity import keys
from omai_ray.identity.accounts import new_account
from omai_ray.identity.administration import Administration
from omai_ray.identity.authenticator import Authenticator
from omai_ray.identity.registry import Registry
from omai_ray.settings import Settings
from omai_ray.store.tables import accounts, api_keys

SMALL = (100, 300)
LARGE = (100_000, 300_000)
HERE = "203.0.113.1"


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    """Return a request's headers."""
    return [(b"host", b"api.example"), (b"authorization", f"Bearer {key}".encode())]


async def fill(registry: Registry, sizes: tuple[int, int], kept: int = 2000) -> list[str]:
    """Insert accounts and keys, spread evenly; return some of the keys."""
    made = [new_account(registry, None, "pro") for _ in range(sizes[0])]
    samples = []
    rows: list[dict[str, Any]] = []
    columns = [column.name for column in api_keys.c]
    for number in range(sizes[1]):
        parsed, text = keys.generate()
        row = dict.fromkeys(columns)
        row |= {
            "id": parsed.key_id,
            "account_id": made[number % len(made)].id,
            "name": "key",
            "role": "member",
            "last_four": text[-4:],
            "mac": keys.compute_mac(parsed, registry.peppers.current),
            "pepper_version": registry.peppers.version,
            "created": float(number),
        }
        rows.append(row)
        if number % max(1, sizes[1] // kept) == 0:
            samples.append(text)
    account_rows = [account.row() for account in made]
    for table, table_rows in ((accounts, account_rows), (api_keys, rows)):
        for start in range(0, len(table_rows), 5000):
            async with registry.store.writing() as connection:
                await connection.execute(insert(table), table_rows[start : start + 5000])
    random.Random(0).shuffle(samples)
    return samples


async def time_calls(
    authenticator: Authenticator, requests: Sequence[str], pause_s: float = 0.0
) -> list[float]:
    """Return the seconds that each key check takes."""
    taken = []
    for key in requests:
        headers = bearer(key)
        begun = time.perf_counter()
        await authenticator.authenticate(headers, HERE)
        taken.append(time.perf_counter() - begun)
        if pause_s:
            await asyncio.sleep(pause_s)
    return taken


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Registry]:
    """Open a registry for a while."""
    registry = await Registry.open(settings)
    try:
        yield registry
    finally:
        await registry.close()


async def measure_checks(
    databases: dict[str, tuple[Settings, tuple[int, int]]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of cached and uncached checks over databases of these sizes.

    They are measured in turns, so that whatever else the machine does meets all alike.
    """
    found: dict[str, dict[str, list[float]]] = {}
    async with AsyncExitStack() as stack:
        filled = {}
        for name, (settings, sizes) in databases.items():
            registry = await stack.enter_async_context(opened(settings))
            filled[name] = registry, await fill(registry, sizes)
            found[name] = {"cached": [], "uncached": []}
        for number in range(rounds):
            for name, (registry, samples) in filled.items():
                authenticator = Authenticator(registry)
                start = number * 50 % (len(samples) - 50)
                batch = samples[start : start + 50]
                found[name]["uncached"] += await time_calls(authenticator, batch, pause_s=0.002)
                found[name]["cached"] += await time_calls(authenticator, batch * 4)
                await authenticator.close()
    return found


async def measure_storm(settings: Settings, seconds: float) -> dict[str, float]:
    """Return how late the event loop is, and a cached check, while logins are hashed and without.

    Every login is another user's, so that none is remembered and none throttled.
    """
    async with opened(settings) as registry:
        admin = Administration(registry)
        await admin.accounts.create("storm", "pro")
        _, key = await admin.keys.create("storm")
        hashed = await registry.passwords.hash("correct horse")
        authenticator = Authenticator(registry)
        quiet = await delays(authenticator, key, seconds)
        stop = asyncio.Event()
        logins = 0

        async def log_in() -> None:
            nonlocal logins
            while not stop.is_set():
                await registry.passwords.verify(hashed, "wrong horse")
                logins += 1

        storm = [asyncio.create_task(log_in()) for _ in range(16)]
        busy = await delays(authenticator, key, seconds)
        stop.set()
        await asyncio.gather(*storm)
        await authenticator.close()
    return {
        "logins_per_s": logins / seconds,
        "quiet_p99_ms": percentile(quiet, 0.99) * 1e3,
        "busy_p99_ms": percentile(busy, 0.99) * 1e3,
        "busy_max_ms": max(busy) * 1e3,
    }


async def delays(authenticator: Authenticator, key: str, seconds: float) -> list[float]:
    """Return the delays of requests that come every 2 ms: late wake-ups count, and their checks."""
    found = []
    headers = bearer(key)
    end = time.perf_counter() + seconds
    due = time.perf_counter()
    while due < end:
        due += 0.002
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await authenticator.authenticate(headers, HERE)
        found.append(time.perf_counter() - due)
    return found


async def measure_timing(settings: Settings, samples: int) -> float:
    """Return Welch's p for wrong keys: first character of the secret wrong against its last.

    Each has its checksum right, as only an attacker's would. All are made, and put into random
    order, before the first is tried: what is done just before a call would show in its time, by
    nanoseconds, and so would Python's collector.
    """
    async with opened(settings) as registry:
        made = await fill(registry, (10, samples), kept=samples)
        authenticator = Authenticator(registry, cache_ttl_s=3600)
        for key in made:
            await authenticator.authenticate(bearer(key), HERE)
        tries = [(side, bearer(changed(key, side))) for key in made for side in (0, 1)]
        random.shuffle(tries)
        taken: tuple[list[float], list[float]] = ([], [])
        gc.disable()
        for side, headers in tries:
            begun = time.perf_counter()
            try:
                await authenticator.authenticate(headers, HERE)
            except Unauthorized:
                elapsed = time.perf_counter() - begun
                taken[side].append(elapsed)
        gc.enable()
        await authenticator.close()
    assert [samples, samples] == [len(side) for side in taken]
    return welch_p(*(trimmed(side) for side in taken))


def changed(key: str, side: int) -> str:
    """Return a key with another first (0) or last (1) character of its secret."""
    parsed = keys.parse(key)
    assert parsed is not None
    secret = list(parsed.secret)
    position = (0, -1)[side]
    secret[position] = random.choice([c for c in keys.ALPHABET if c != secret[position]])
    body = f"{parsed.key_id}_{''.join(secret)}"
    return f"{keys.PREFIX}{body}_{keys._checksum(body)}"


def trimmed(values: list[float]) -> list[float]:
    """Leave out the slowest tenth: what else the machine did."""
    return sorted(values)[: len(values) * 9 // 10]


def welch_p(a: list[float], b: list[float]) -> float:
    """Return the two-sided p of equal means (normal approximation, for thousands of values)."""
    variance = statistics.variance(a) / len(a) + statistics.variance(b) / len(b)
    t = abs(statistics.fmean(a) - statistics.fmean(b)) / math.sqrt(variance)
    return math.erfc(t / math.sqrt(2))


def percentile(values: list[float], share: float) -> float:
    """Return the value that a share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


_LITELLM = """
import asyncio, hashlib, json, os, statistics, sys, time
os.environ["LITELLM_LOG"] = "ERROR"
from fastapi import Request
from litellm.proxy import proxy_server
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from litellm.proxy.utils import hash_token

async def main(calls):
    key = "sk-" + "a" * 40
    proxy_server.master_key = "sk-master-0123456789"
    proxy_server.prisma_client = object()
    hashed = hash_token(key)
    token = UserAPIKeyAuth(api_key=hashed, token=hashed, user_role="internal_user", models=[],
                           last_refreshed_at=time.time())
    cache = proxy_server.user_api_key_cache
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "query_string": b"",
             "headers": [(b"host", b"x"), (b"authorization", b"Bearer " + key.encode())],
             "client": ("203.0.113.1", 1), "server": ("x", 80), "scheme": "http", "root_path": ""}
    taken = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    await cache.async_set_cache(hashed, token)
    for _ in range(calls):
        request = Request(dict(scope), receive)
        begun = time.perf_counter()
        await user_api_key_auth(request=request, api_key="Bearer " + key)
        taken.append(time.perf_counter() - begun)
    print(json.dumps({"cached_s": statistics.median(taken)}))

asyncio.run(main(int(sys.argv[1])))
"""


def main() -> None:
    """Measure, print a table, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds a part")
    parser.add_argument("--postgresql", metavar="URL", help="an empty database to measure as well")
    args = parser.parse_args()
    rounds, seconds, pairs = (6, 3.0, 5000) if args.quick else (30, 10.0, 9000)
    figures: dict[str, Any] = {
        "cpus": os.cpu_count(),
        "cpu": platform.machine(),
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(state_dir=Path(directory) / "small")
        sizes = (LARGE[0] // 10, LARGE[1] // 10) if args.quick else LARGE
        figures["large_accounts"], figures["large_keys"] = sizes
        databases = {
            "small": (settings, SMALL),
            "large": (Settings(state_dir=Path(directory) / "large"), sizes),
        }
        if args.postgresql:
            remote = settings.model_copy(update={"database_url": args.postgresql})
            databases["postgresql"] = remote, sizes
        checks = asyncio.run(measure_checks(databases, rounds))
        for name, found in checks.items():
            figures[f"{name}_cached_us"] = statistics.median(found["cached"]) * 1e6
            figures[f"{name}_uncached_ms"] = statistics.median(found["uncached"]) * 1e3
            figures[f"{name}_uncached_p99_ms"] = percentile(found["uncached"], 0.99) * 1e3
        figures["large_vs_small_cached"] = figures["large_cached_us"] / figures["small_cached_us"]
        figures["large_vs_small_uncached"] = (
            figures["large_uncached_ms"] / figures["small_uncached_ms"]
        )
        storm = asyncio.run(measure_storm(Settings(state_dir=Path(directory) / "s"), seconds))
        figures |= {f"argon2_{name}": value for name, value in storm.items()}
        figures["timing_welch_p"] = asyncio.run(
            measure_timing(Settings(state_dir=Path(directory) / "t"), pairs)
        )
    litellm = run_litellm(_LITELLM, 200 * rounds)
    if litellm is not None:
        figures["litellm_cached_us"] = litellm["cached_s"] * 1e6
        figures["vs_litellm_cached"] = figures["litellm_cached_us"] / figures["large_cached_us"]
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    for name, value in rounded.items():
        print(f"{name:28} {value}")
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
