"""The buckets of all accounts, in one process: every decision is one step that nothing divides."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
        pair = self._pair(reservation.bucket, reservation.limits, now_s)
        if reservation.reservation_id in self._open:
            return _decision(pair)
        refused = _refusal(pair, reservation.tokens)
        if refused is not None:
            return _decision(pair, *refused)
        if pair.requests is not None:
            pair.requests.take(1)
        if pair.tokens is not None:
            pair.tokens.take(reservation.tokens)
        self._open[reservation.reservation_id] = (reservation, now_s + self._ttl_s)
        return _decision(pair)

    def settle_one(self, reservation_id: str, used_tokens: int) -> None:
        """Settle one reservation, see `settle`."""
        now_s = self._now_s()
        self._drop_expired(now_s)
        reservation, _ = self._open.pop(reservation_id, (None, 0.0))
        if reservation is None:
            return
        pair = self._pair(reservation.bucket, reservation.limits, now_s)
        if pair.tokens is None:
            return
        unused = reservation.tokens - max(0, used_tokens)
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


def _refusal(pair: _Pair, tokens: int) -> tuple[Limited, float | None] | None:
    """Return which bucket refuses, and for how long: the one that takes longer to fill."""
    if pair.tokens is not None and pair.tokens.wait_s(tokens) is None:
        return "tokens", None
    requests_s = (pair.requests.wait_s(1) if pair.requests else 0.0) or 0.0
    tokens_s = (pair.tokens.wait_s(tokens) if pair.tokens else 0.0) or 0.0
    if requests_s == tokens_s == 0.0:
        return None
    return ("requests", requests_s) if requests_s >= tokens_s else ("tokens", tokens_s)


def _decision(
    pair: _Pair, limited: Limited | None = None, retry_after_s: float | None = None
) -> Decision:
    return Decision(
        admitted=limited is None,
        requests=_state(pair.requests),
        tokens=_state(pair.tokens),
        limited=limited,
        retry_after_s=retry_after_s,
    )


def _state(bucket: Bucket | None) -> BucketState | None:
    return BucketState(bucket.capacity, bucket.remaining, bucket.reset_s) if bucket else None
