"""Buckets in Redis: each decision is one script there, so that nothing comes between its parts.

A claim's bucket is a hash of two balances and when they were right; what runs is a sorted set of
reservations by when they expire; an open reservation is a key of its own. All of an account's keys
share a hash tag, so that a Redis cluster keeps them together. Balances are doubles: exact to a
millionth of a token for the largest tier.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from omai_ray.errors import ConfigError
from omai_ray.quota.buckets import RESERVATION_TTL_S, tightest
from omai_ray.quota.protocol import BUSY_S, Batch, BucketState, Decision, Limits, Reservation

_TINY = 1e-6
_PREFIX = "omai:quota"

# KEYS: the reservation, then a hash and a sorted set for each claim. ARGV: now in seconds, the
# reservation's lifetime, its id, its tokens, 1 to charge in any case, then for each claim its
# requests and tokens a minute and concurrent requests, -1 for unlimited.
# Returns 1 or 0 (admitted); what refuses (0, or claim * 3 + dimension); the wait (-1 for ever);
# and for each claim its balances of requests and tokens.
_RESERVE = """
local now, ttl, id, tokens, force = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3],
    tonumber(ARGV[4]), ARGV[5] == "1"
local claims = {}
local known = redis.call("EXISTS", KEYS[1]) == 1
local refused, longest = 0, 0
local function refuse(claim, dimension, wait)
    if longest ~= -1 and (wait == -1 or wait > longest) then
        refused, longest = claim * 3 + dimension, wait
    end
end
local function balance(kept, capacity, elapsed, then_capacity)
    if capacity < 0 then return -1 end
    if not kept then return capacity end
    local held = tonumber(kept)
    local before = tonumber(then_capacity or capacity)
    if before >= 0 and before ~= capacity then held = held * capacity / before end
    return math.min(capacity, held + elapsed * capacity / 60)
end
for c = 1, (#KEYS - 1) / 2 do
    local hash, set = KEYS[2 * c], KEYS[2 * c + 1]
    local rpm, tpm, most = tonumber(ARGV[3 * c + 3]), tonumber(ARGV[3 * c + 4]),
        tonumber(ARGV[3 * c + 5])
    local kept = redis.call("HMGET", hash, "r", "t", "at", "rpm", "tpm")
    local at = math.max(tonumber(kept[3] or now), now)
    local elapsed = kept[3] and math.max(0, now - tonumber(kept[3])) or 0
    local claim = {hash = hash, set = set, at = at, rpm = rpm, tpm = tpm,
        r = balance(kept[1], rpm, elapsed, kept[4]), t = balance(kept[2], tpm, elapsed, kept[5])}
    claims[c] = claim
    if most >= 0 then
        redis.call("ZREMRANGEBYSCORE", set, "-inf", now)
        if redis.call("ZCARD", set) >= most then refuse(c, 0, BUSY) end
    end
    if rpm >= 0 and claim.r + TINY < 1 then
        refuse(c, 1, (1 - claim.r) * 60 / rpm)
    end
    if tpm >= 0 and claim.t + TINY < tokens then
        refuse(c, 2, tokens > tpm and -1 or (tokens - claim.t) * 60 / tpm)
    end
end
local admitted = known or force or refused == 0
local answer = {admitted and 1 or 0, refused, string.format("%.9f", longest)}
for c, claim in ipairs(claims) do
    if admitted and not known then
        if claim.rpm >= 0 then claim.r = claim.r - 1 end
        if claim.tpm >= 0 then claim.t = claim.t - tokens end
        redis.call("ZADD", claim.set, now + ttl, id)
        redis.call("PEXPIRE", claim.set, math.ceil(ttl * 1000))
    end
    redis.call("HSET", claim.hash, "r", string.format("%.9f", claim.r),
        "t", string.format("%.9f", claim.t), "at", string.format("%.9f", claim.at),
        "rpm", claim.rpm, "tpm", claim.tpm)
    local missing = 60
    if claim.rpm > 0 then missing = math.max(missing, (claim.rpm - claim.r) * 60 / claim.rpm) end
    if claim.tpm > 0 then missing = math.max(missing, (claim.tpm - claim.t) * 60 / claim.tpm) end
    redis.call("PEXPIRE", claim.hash, math.ceil(missing * 1000) + 1000)
    answer[#answer + 1] = string.format("%.9f", claim.r)
    answer[#answer + 1] = string.format("%.9f", claim.t)
end
if admitted and not known then
    redis.call("SET", KEYS[1], tokens, "PX", math.ceil(ttl * 1000))
end
return answer
"""

# KEYS as above. ARGV: the reservation's id, the tokens used, then each claim's tokens a minute.
_SETTLE = """
local reserved = redis.call("GET", KEYS[1])
if not reserved then return 0 end
redis.call("DEL", KEYS[1])
local unused = tonumber(reserved) - math.max(0, tonumber(ARGV[2]))
for c = 1, (#KEYS - 1) / 2 do
    redis.call("ZREM", KEYS[2 * c + 1], ARGV[1])
    local tpm = tonumber(ARGV[c + 2])
    local kept = redis.call("HGET", KEYS[2 * c], "t")
    if tpm >= 0 and kept then
        local t = math.min(tpm, tonumber(kept) + unused)
        redis.call("HSET", KEYS[2 * c], "t", string.format("%.9f", t))
        local ttl = math.ceil(math.max(60, (tpm - t) * 60 / tpm) * 1000) + 1000
        redis.call("PEXPIRE", KEYS[2 * c], ttl)
    end
end
return 1
"""
_DIMENSIONS = ("concurrency", "requests", "tokens")


class RedisAuthority:
    """Keeps the Authority protocol over a Redis server (or cluster, or sentinel: see redis-py).

    clock: seconds since the epoch, of this process: a bucket never goes back in time, whatever the
    clocks of several nodes say. Raises ConfigError where redis-py is not installed, or the URL is
    none.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] = time.time,
        ttl_s: float = RESERVATION_TTL_S,
        prefix: str = _PREFIX,
    ) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError:
            raise ConfigError(
                "limiter: backend redis needs redis-py: pip install 'omai-ray[redis]'"
            ) from None
        try:
            self._redis: Any = Redis.from_url(url, socket_connect_timeout=1, socket_timeout=1)
        except ValueError as error:
            raise ConfigError(f"limiter.redis_url: {error}") from None
        self._clock = clock
        self._ttl_s = ttl_s
        self._prefix = prefix
        constants = (("TINY", repr(_TINY)), ("BUSY", repr(BUSY_S)))
        self._reserve = self._redis.register_script(_filled(_RESERVE, constants))
        self._settle = self._redis.register_script(_SETTLE)

    async def call(self, batch: Batch) -> list[Decision]:
        """Charge, settle and decide, each in the order given, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for reservation in batch.charges:
            await self._reserve(self._keys(reservation), self._asks(reservation, 1), client=pipe)
        for reservation, used_tokens in batch.settlements:
            limits = [claim.limits.tokens_per_minute for claim in reservation.claims]
            used: list[Any] = [reservation.reservation_id, used_tokens, *map(_number, limits)]
            await self._settle(self._keys(reservation), used, client=pipe)
        for reservation in batch.reservations:
            await self._reserve(self._keys(reservation), self._asks(reservation, 0), client=pipe)
        answers = await pipe.execute()
        decided = answers[len(answers) - len(batch.reservations) :]
        return [
            _decision(reservation, answer)
            for reservation, answer in zip(batch.reservations, decided, strict=True)
        ]

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    def _keys(self, reservation: Reservation) -> list[str]:
        account = reservation.claims[0].bucket.partition("/")[0]
        tag = f"{self._prefix}:{{{account}}}"
        keys = [f"{tag}:open:{reservation.reservation_id}"]
        for claim in reservation.claims:
            keys += [f"{tag}:{claim.bucket}", f"{tag}:{claim.bucket}:running"]
        return keys

    def _asks(self, reservation: Reservation, force: int) -> list[Any]:
        head = [repr(self._clock()), self._ttl_s, reservation.reservation_id, reservation.tokens]
        limits = [_numbers(claim.limits) for claim in reservation.claims]
        return [*head, force, *(number for numbers in limits for number in numbers)]


def _filled(script: str, constants: tuple[tuple[str, str], ...]) -> str:
    for name, value in constants:
        script = script.replace(name, value)
    return script


def _numbers(limits: Limits) -> list[int]:
    values = (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests)
    return [_number(value) for value in values]


def _number(limit: int | None) -> int:
    return -1 if limit is None else limit


def _decision(reservation: Reservation, answer: list[Any]) -> Decision:
    admitted, refused, wait, *balances = answer
    requests, tokens = [], []
    for index, claim in enumerate(reservation.claims):
        kept = balances[2 * index : 2 * index + 2]
        requests.append(_state(claim.limits.requests_per_minute, float(kept[0])))
        tokens.append(_state(claim.limits.tokens_per_minute, float(kept[1])))
    if admitted:
        return Decision(True, tightest(requests), tightest(tokens))
    claim_index, dimension = divmod(int(refused), 3)
    limited = _DIMENSIONS[dimension]
    shown = {
        "requests": tightest(requests) if limited != "requests" else requests[claim_index - 1],
        "tokens": tightest(tokens) if limited != "tokens" else tokens[claim_index - 1],
    }
    wait_s = float(wait)
    return Decision(
        admitted=False,
        requests=shown["requests"],
        tokens=shown["tokens"],
        limited=limited,  # type: ignore[arg-type]
        retry_after_s=None if wait_s < 0 else wait_s,
    )


def _state(capacity: int | None, balance: float) -> BucketState | None:
    if capacity is None:
        return None
    remaining = max(0, math.floor(balance + _TINY))
    return BucketState(capacity, remaining, max(0.0, (capacity - balance) * 60 / capacity))
