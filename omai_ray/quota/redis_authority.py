"""Buckets in Redis: each decision is one script there, so that nothing comes between its parts.

A claim's bucket is a hash of two balances and when they were right; what runs is a sorted set of
reservations by when they expire; an open reservation, and one that was charged in any case, is a
key of its own. All of an account's keys share a hash tag. Balances are doubles: exact to a
millionth of a token for the largest tier.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

from omai_ray.errors import ConfigError
from omai_ray.quota.buckets import LATE_S, RESERVATION_TTL_S, tightest
from omai_ray.quota.protocol import BUSY_S, Batch, BucketState, Decision, Limits, Reservation

_TINY = 1e-6
_PREFIX = "omai:quota"

# What both scripts begin with: the time, and what is left of a claim's bucket by then.
_COMMON = """
local function seconds(given)
    if given ~= "" then return tonumber(given) end
    local time = redis.call("TIME")
    return tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local function balance(kept, capacity, elapsed, before)
    if capacity < 0 then return -1 end
    before = tonumber(before or -1)
    if not kept or before < 0 then return capacity end
    return math.min(capacity, (tonumber(kept) + elapsed * before / 60) * capacity / before)
end
local function keep(hash, now, r, t, rpm, tpm)
    redis.call("HSET", hash, "r", string.format("%.9f", r), "t", string.format("%.9f", t),
        "at", string.format("%.9f", now), "rpm", rpm, "tpm", tpm)
    local missing = 0
    if rpm > 0 then missing = math.max(missing, (rpm - r) * 60 / rpm) end
    if tpm > 0 then missing = math.max(missing, (tpm - t) * 60 / tpm) end
    redis.call("PEXPIRE", hash, math.ceil(missing * 1000) + 1000)
end
"""

# KEYS: the reservation, its charge, then a hash and a sorted set for each claim. ARGV: the time or
# nothing, the reservation's lifetime, its id, its tokens, 1 to charge in any case, then for each
# claim its requests and tokens a minute and concurrent requests, -1 for unlimited.
# Returns 1 or 0 (admitted); what refuses (0, or claim * 3 + dimension); the wait (-1 for ever);
# and for each claim its balances of requests and tokens.
_RESERVE = """
local now, ttl, id, tokens, force = seconds(ARGV[1]), tonumber(ARGV[2]), ARGV[3],
    tonumber(ARGV[4]), ARGV[5] == "1"
local claims = {}
local known = redis.call("EXISTS", KEYS[1]) == 1
if force and not redis.call("SET", KEYS[2], 1, "NX", "PX", math.ceil(ttl * 1000)) then
    known = true
end
local refused, longest = 0, 0
local function refuse(claim, dimension, wait)
    if longest ~= -1 and (wait == -1 or wait > longest) then
        refused, longest = claim * 3 + dimension, wait
    end
end
for c = 1, (#KEYS - 2) / 2 do
    local hash, set = KEYS[2 * c + 1], KEYS[2 * c + 2]
    local rpm, tpm, most = tonumber(ARGV[3 * c + 3]), tonumber(ARGV[3 * c + 4]),
        tonumber(ARGV[3 * c + 5])
    local kept = redis.call("HMGET", hash, "r", "t", "at", "rpm", "tpm")
    local at = math.max(tonumber(kept[3] or now), now)
    local elapsed = kept[3] and math.max(0, now - tonumber(kept[3])) or 0
    local claim = {hash = hash, set = set, at = at, rpm = rpm, tpm = tpm,
        r = balance(kept[1], rpm, elapsed, kept[4]), t = balance(kept[2], tpm, elapsed, kept[5])}
    claims[c] = claim
    redis.call("ZREMRANGEBYSCORE", set, "-inf", now)
    if most >= 0 and redis.call("ZCARD", set) >= most then refuse(c, 0, BUSY) end
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
        keep(claim.hash, claim.at, claim.r, claim.t, claim.rpm, claim.tpm)
    end
    answer[#answer + 1] = string.format("%.9f", claim.r)
    answer[#answer + 1] = string.format("%.9f", claim.t)
end
if admitted and not known then
    redis.call("SET", KEYS[1], tokens, "PX", math.ceil((ttl + LATE) * 1000))
end
return answer
"""

# KEYS as above. ARGV: the time or nothing, the reservation's id, the tokens used, then each claim's
# requests and tokens a minute, for a bucket that was full and so forgotten.
_SETTLE = """
local now, reserved = seconds(ARGV[1]), redis.call("GET", KEYS[1])
if not reserved then return 0 end
redis.call("DEL", KEYS[1])
for c = 1, (#KEYS - 2) / 2 do
    local hash = KEYS[2 * c + 1]
    local unused = tonumber(reserved) - math.max(0, tonumber(ARGV[3]))
    local expires = redis.call("ZSCORE", KEYS[2 * c + 2], ARGV[2])
    if not expires or tonumber(expires) <= now then unused = math.min(0, unused) end
    redis.call("ZREM", KEYS[2 * c + 2], ARGV[2])
    local kept = redis.call("HMGET", hash, "r", "t", "at", "rpm", "tpm")
    local rpm = tonumber(kept[4] or ARGV[2 * c + 2])
    local tpm = tonumber(kept[5] or ARGV[2 * c + 3])
    local at = math.max(tonumber(kept[3] or now), now)
    local elapsed = kept[3] and math.max(0, now - tonumber(kept[3])) or 0
    local r, t = balance(kept[1], rpm, elapsed, kept[4]), balance(kept[2], tpm, elapsed, kept[5])
    if tpm >= 0 then t = math.min(tpm, t + unused) end
    keep(hash, at, r, t, rpm, tpm)
end
return 1
"""
_DIMENSIONS = ("concurrency", "requests", "tokens")


class RedisAuthority:
    """Keeps the Authority protocol over one Redis server.

    timeout_s: how long it may take to connect and to answer. clock: seconds, in place of the
    server's own time, for tests. Raises ConfigError where redis-py is not installed, or the URL is
    none.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 1.0,
        clock: Callable[[], float] | None = None,
        ttl_s: float = RESERVATION_TTL_S,
        prefix: str = _PREFIX,
    ) -> None:
        try:
            from redis.asyncio import Redis
            from redis.exceptions import NoScriptError
        except ImportError:
            raise ConfigError(
                "limiter: backend redis needs redis-py: pip install 'omai-ray[redis]'"
            ) from None
        try:
            self._redis: Any = Redis.from_url(
                url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s
            )
        except ValueError as error:
            raise ConfigError(f"limiter.redis_url: {error}") from None
        self._no_script: type[Exception] = NoScriptError
        self._clock = clock
        self._ttl_s = ttl_s
        self._prefix = prefix
        constants = (("TINY", repr(_TINY)), ("BUSY", repr(BUSY_S)), ("LATE", repr(LATE_S)))
        self._scripts = [_COMMON + _filled(_RESERVE, constants), _COMMON + _SETTLE]
        self._reserve, self._settle = (
            hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
            for script in self._scripts
        )

    async def call(self, batch: Batch) -> list[Decision]:
        """Charge, settle and decide, each in the order given, in one round trip."""
        try:
            answers = await self._ask(batch)
        except self._no_script:  # a new server; what was done of the batch is not done again
            for script in self._scripts:
                await self._redis.script_load(script)
            answers = await self._ask(batch)
        decided = answers[len(answers) - len(batch.reservations) :]
        return [
            _decision(reservation, answer)
            for reservation, answer in zip(batch.reservations, decided, strict=True)
        ]

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def _ask(self, batch: Batch) -> list[Any]:
        now = "" if self._clock is None else repr(self._clock())
        pipe = self._redis.pipeline(transaction=False)

        def queue(script: str, reservation: Reservation, *arguments: Any) -> None:
            keys = self._keys(reservation)
            pipe.evalsha(script, len(keys), *keys, now, *arguments)

        for reservation in batch.charges:
            queue(self._reserve, reservation, *self._asks(reservation, 1))
        for reservation, used_tokens in batch.settlements:
            limits = [
                number for claim in reservation.claims for number in _numbers(claim.limits)[:2]
            ]
            queue(self._settle, reservation, reservation.reservation_id, used_tokens, *limits)
        for reservation in batch.reservations:
            queue(self._reserve, reservation, *self._asks(reservation, 0))
        answers: list[Any] = await pipe.execute()
        return answers

    def _keys(self, reservation: Reservation) -> list[str]:
        account = reservation.claims[0].bucket.partition("/")[0]
        tag = f"{self._prefix}:{{{account}}}"
        name = f"{tag}:open:{reservation.reservation_id}"
        keys = [name, f"{name}:charged"]
        for claim in reservation.claims:
            keys += [f"{tag}:{claim.bucket}", f"{tag}:{claim.bucket}:running"]
        return keys

    def _asks(self, reservation: Reservation, force: int) -> list[Any]:
        limits = [number for claim in reservation.claims for number in _numbers(claim.limits)]
        head = [self._ttl_s, reservation.reservation_id, reservation.tokens, force]
        return [*head, *limits]


def _filled(script: str, constants: tuple[tuple[str, str], ...]) -> str:
    for name, value in constants:
        script = script.replace(name, value)
    return script


def _numbers(limits: Limits) -> list[int]:
    values = (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests)
    return [-1 if value is None else value for value in values]


def _decision(reservation: Reservation, answer: list[Any]) -> Decision:
    admitted, refused, wait, *balances = answer
    requests, tokens = [], []
    for index, claim in enumerate(reservation.claims):
        kept = balances[2 * index : 2 * index + 2]
        requests.append(_state(claim.limits.requests_per_minute, float(kept[0])))
        tokens.append(_state(claim.limits.tokens_per_minute, float(kept[1])))
    states = tuple(zip(requests, tokens, strict=True))
    claims = states if len(states) > 1 else ()
    if admitted:
        return Decision(True, tightest(requests), tightest(tokens), claims=claims)
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
        claims=claims,
    )


def _state(capacity: int | None, balance: float) -> BucketState | None:
    if capacity is None:
        return None
    remaining = max(0, math.floor(balance + _TINY))
    return BucketState(capacity, remaining, max(0.0, (capacity - balance) * 60 / capacity))
