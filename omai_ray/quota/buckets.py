"""The buckets of all accounts, in one process: every decision is one step that nothing divides."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from omai_ray.quota.bucket import Bucket
from omai_ray.quota.protocol import BucketState, Decision, Limited, Limits, Reservation

RESERVATION_TTL_S = 600.0
MAX_RESERVATIONS = 1_000_000
_SWEEP = 2


@dataclass(slots=True)
class _Pair:
    """An account's two buckets; None where unlimited."""

    requests: Bucket | None
    tokens: Bucket | None

    def refill(self, limits: Limits, now_s: float) -> None:
        self.requests = _fitted(self.requests, limits.requests_per_minute, now_s)
        self.tokens = _fitted(self.tokens, limits.tokens_per_minute, now_s)

    @property
    def is_full(self) -> bool:
        return all(bucket is None or bucket.is_full for bucket in (self.requests, self.tokens))


class InProcessBuckets:
    """Keeps the Limiter protocol; its synchronous methods serve an actor that batches calls.

    clock: seconds, monotonic. A reservation that is never settled (its replica died) stays spent,
    because its tokens may have been used, and costs the account at most what refills in a minute;
    only its record is dropped, after `ttl_s`, so that a later settlement changes nothing.
    Reserving twice under one id while it is open charges once: a caller may repeat a lost call.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, ttl_s: float = RESERVATION_TTL_S
    ) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._latest_s = float("-inf")
        self._pairs: OrderedDict[str, _Pair] = OrderedDict()
        self._open: OrderedDict[str, tuple[Reservation, float]] = OrderedDict()

    async def reserve(self, reservation: Reservation) -> Decision:
        """Take a request and its tokens, both or neither."""
        return self.reserve_one(reservation)

    async def settle(self, reservation_id: str, used_tokens: int) -> None:
        """Return what was not used, or take what was used beyond. Once: then it is forgotten."""
        self.settle_one(reservation_id, used_tokens)

    def reserve_many(self, reservations: Iterable[Reservation]) -> list[Decision]:
        """Decide several in their order."""
        return [self.reserve_one(reservation) for reservation in reservations]

    def settle_many(self, settlements: Iterable[tuple[str, int]]) -> None:
        """Settle several, each a reservation's id and the tokens that it used."""
        for reservation_id, used_tokens in settlements:
            self.settle_one(reservation_id, used_tokens)

    def reserve_one(self, reservation: Reservation) -> Decision:
        """Decide one reservation, see `reserve`."""
        now_s = self._now_s()
        self._drop_expired(now_s)
        self._drop_idle(now_s)
        pairs = self._pairs_of(reservation, now_s)
        if reservation.reservation_id in self._open:
            return _decision(pairs)
        refused = _longest_refusal(pairs, reservation.tokens)
        if refused is not None:
            return _decision(pairs, refused)
        for pair in pairs:
            if pair.requests is not None:
                pair.requests.take(1)
            if pair.tokens is not None:
                pair.tokens.take(reservation.tokens)
        self._open[reservation.reservation_id] = (reservation, now_s + self._ttl_s)
        return _decision(pairs)

    def settle_one(self, reservation_id: str, used_tokens: int) -> None:
        """Settle one reservation, see `settle`."""
        now_s = self._now_s()
        self._drop_expired(now_s)
        reservation, _ = self._open.pop(reservation_id, (None, 0.0))
        if reservation is None:
            return
        unused = reservation.tokens - max(0, used_tokens)
        for pair in self._pairs_of(reservation, now_s):
            if pair.tokens is None:
                continue
            if unused >= 0:
                pair.tokens.give(unused)
            else:
                pair.tokens.take(-unused)

    def _now_s(self) -> float:
        """Return the latest time seen: a dropped bucket must not come back in its own past."""
        self._latest_s = max(self._latest_s, self._clock())
        return self._latest_s

    def _drop_expired(self, now_s: float) -> None:
        while self._open:
            reservation_id, (_, expires_s) = next(iter(self._open.items()))
            if now_s < expires_s and len(self._open) < MAX_RESERVATIONS:
                return
            del self._open[reservation_id]

    def _drop_idle(self, now_s: float) -> None:
        """Look at the longest unused pairs: a full one is the same as none."""
        for _ in range(min(_SWEEP, len(self._pairs))):
            name, pair = next(iter(self._pairs.items()))
            for bucket in (pair.requests, pair.tokens):
                if bucket is not None:
                    bucket.refill(now_s)
            if pair.is_full:
                del self._pairs[name]
            else:
                self._pairs.move_to_end(name)

    def _pairs_of(self, reservation: Reservation, now_s: float) -> list[_Pair]:
        return [self._pair(claim.bucket, claim.limits, now_s) for claim in reservation.claims]

    def _pair(self, name: str, limits: Limits, now_s: float) -> _Pair:
        pair = self._pairs.setdefault(name, _Pair(None, None))
        self._pairs.move_to_end(name)
        pair.refill(limits, now_s)
        return pair


def _fitted(bucket: Bucket | None, capacity: int | None, now_s: float) -> Bucket | None:
    """Return the bucket refilled and of that capacity, a full one where there was none."""
    if capacity is None:
        return None
    if bucket is None:
        return Bucket.full(capacity, now_s)
    bucket.refill(now_s)
    bucket.resize(capacity)
    return bucket


class _Refusal(NamedTuple):
    """What stands in the way; wait_s: for how long, None for ever."""

    limited: Limited
    bucket: Bucket
    wait_s: float | None


def _longest_refusal(pairs: list[_Pair], tokens: int) -> _Refusal | None:
    """Return the bucket that refuses for the longest time, None where none does."""
    refusals = []
    for pair in pairs:
        if pair.requests is not None:
            refusals.append(_Refusal("requests", pair.requests, pair.requests.wait_s(1)))
        if pair.tokens is not None:
            refusals.append(_Refusal("tokens", pair.tokens, pair.tokens.wait_s(tokens)))
    longest = max(refusals, key=_wait_s, default=None)
    return longest if longest is not None and _wait_s(longest) > 0 else None


def _wait_s(refusal: _Refusal) -> float:
    return math.inf if refusal.wait_s is None else refusal.wait_s


def _decision(pairs: list[_Pair], refusal: _Refusal | None = None) -> Decision:
    requests = _tightest([pair.requests for pair in pairs])
    tokens = _tightest([pair.tokens for pair in pairs])
    if refusal is not None and refusal.limited == "requests":
        requests = refusal.bucket
    elif refusal is not None:
        tokens = refusal.bucket
    return Decision(
        admitted=refusal is None,
        requests=_state(requests),
        tokens=_state(tokens),
        limited=refusal.limited if refusal else None,
        retry_after_s=refusal.wait_s if refusal else None,
    )


def _tightest(buckets: list[Bucket | None]) -> Bucket | None:
    limited = [bucket for bucket in buckets if bucket is not None]
    return min(limited, key=lambda bucket: bucket.remaining, default=None)


def _state(bucket: Bucket | None) -> BucketState | None:
    return BucketState(bucket.capacity, bucket.remaining, bucket.reset_s) if bucket else None
