"""The buckets of all accounts, in one process: every decision is one step that nothing divides."""

from __future__ import annotations

import math
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from omai_ray.quota.bucket import Bucket
from omai_ray.quota.protocol import (
    BUSY_S,
    Batch,
    BucketState,
    Claim,
    Decision,
    Limited,
    Limits,
    Reservation,
)

RESERVATION_TTL_S = 600.0
LATE_S = 6 * 3600.0
"""How much later a settlement still takes what was used beyond its reservation."""
MAX_RESERVATIONS = 1_000_000
_SWEEP = 2
_VERSION = 2


@dataclass(slots=True)
class _Pair:
    """What a claim draws on: two buckets, None where unlimited, and the requests that run."""

    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0

    def refill(self, limits: Limits, now_s: float) -> None:
        self.requests = _fitted(self.requests, limits.requests_per_minute, now_s)
        self.tokens = _fitted(self.tokens, limits.tokens_per_minute, now_s)

    @property
    def is_idle(self) -> bool:
        """Whether it is the same as a new one."""
        full = all(bucket is None or bucket.is_full for bucket in (self.requests, self.tokens))
        return full and self.running == 0


class InProcessBuckets:
    """Keeps the Limiter and the Authority protocol.

    clock: seconds, monotonic; wall: seconds since the epoch, for snapshots. A reservation that is
    never settled (its replica died) stays spent, because its tokens may have been used, and costs
    the account at most what refills in a minute. After `ttl_s` it no longer counts as running, and
    its settlement, up to LATE_S later, returns nothing, as that has refilled: it only takes what
    was used beyond. Reserving twice under one id while it is kept charges once.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        ttl_s: float = RESERVATION_TTL_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._ttl_s = ttl_s
        self._latest_s = float("-inf")
        self._pairs: OrderedDict[str, _Pair] = OrderedDict()
        self._open: OrderedDict[str, tuple[Reservation, float]] = OrderedDict()
        self._late: OrderedDict[str, tuple[Reservation, float]] = OrderedDict()
        self._charged: OrderedDict[str, float] = OrderedDict()

    async def reserve(self, reservation: Reservation) -> Decision:
        """Take a request and its tokens, both or neither."""
        return self.reserve_one(reservation)

    async def settle(self, reservation: Reservation, used_tokens: int) -> None:
        """Return what was not used, or take what was used beyond. Once: then it is forgotten."""
        self.settle_one(reservation.reservation_id, used_tokens)

    async def call(self, batch: Batch) -> list[Decision]:
        """Charge, settle and decide, each in the order given."""
        for reservation in batch.charges:
            self.charge_one(reservation)
        for reservation, used_tokens in batch.settlements:
            self.settle_one(reservation.reservation_id, used_tokens)
        return self.reserve_many(batch.reservations)

    async def close(self) -> None:
        """Free nothing: it is all in this process."""

    def reserve_many(self, reservations: Iterable[Reservation]) -> list[Decision]:
        """Decide several in their order."""
        return [self.reserve_one(reservation) for reservation in reservations]

    def reserve_one(self, reservation: Reservation) -> Decision:
        """Decide one reservation, see `reserve`."""
        now_s = self._advance()
        self._drop_idle(now_s)
        pairs = self._pairs_of(reservation, now_s)
        if not self._keeps(reservation.reservation_id):
            refused = _longest_refusal(pairs, reservation)
            if refused is not None:
                return _decision(pairs, refused)
            self._take(reservation, pairs)
        return _decision(pairs)

    def charge_one(self, reservation: Reservation) -> None:
        """Take what was admitted elsewhere, even into debt, and once: the call may be repeated."""
        now_s = self._advance()
        name = reservation.reservation_id
        if not self._keeps(name) and name not in self._charged:
            self._take(reservation, self._pairs_of(reservation, now_s))
        self._charged[name] = now_s + self._ttl_s

    def settle_one(self, reservation_id: str, used_tokens: int) -> None:
        """Settle one reservation, see `settle`."""
        now_s = self._advance()
        if reservation_id in self._open:
            reservation, _ = self._open.pop(reservation_id)
            unused = reservation.tokens - max(0, used_tokens)
            pairs = self._ended(reservation)
        elif reservation_id in self._late:
            reservation, _ = self._late.pop(reservation_id)
            unused = min(0, reservation.tokens - used_tokens)
            pairs = self._pairs_of(reservation, now_s)
        else:
            return
        for pair in pairs:
            if pair.tokens is None:
                continue
            pair.tokens.refill(now_s)
            if unused >= 0:
                pair.tokens.give(unused)
            else:
                pair.tokens.take(-unused)

    def seed(self, claim: Claim, requests: int | None, tokens: int | None, at_s: float) -> None:
        """Begin a claim's buckets with what was left at a time, unless they are there already."""
        if claim.bucket in self._pairs:
            return
        limits = claim.limits
        self._pairs[claim.bucket] = _Pair(
            _begun(limits.requests_per_minute, requests, at_s),
            _begun(limits.tokens_per_minute, tokens, at_s),
        )

    def forget(self, bucket: str) -> None:
        """Drop a claim's buckets."""
        self._pairs.pop(bucket, None)

    def snapshot(self) -> bytes:
        """Return all that is kept, for `restore`."""
        now_s = self._advance()
        kept = self._pairs, self._open, self._late
        return pickle.dumps((_VERSION, self._wall(), now_s, kept))

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot of this class's own; the time since then refills, as wall tells it.

        Raises ValueError for what is none.
        """
        try:
            version, wall_s, then_s, *kept = pickle.loads(snapshot)  # noqa: S301
        except Exception as error:
            raise ValueError(f"not a snapshot: {error!r}") from error
        if version != _VERSION:
            raise ValueError(f"a snapshot of version {version}, not {_VERSION}")
        pairs, running, late = kept[0]
        elapsed_s = max(0.0, self._wall() - wall_s)
        now_s = self._latest_s = self._clock()
        later_s = now_s - then_s - elapsed_s
        for pair in pairs.values():
            for bucket in (pair.requests, pair.tokens):
                if bucket is not None:
                    bucket.shift(later_s)
        self._pairs = pairs
        self._open, self._late = (
            OrderedDict(
                (name, (reservation, expires_s + later_s))
                for name, (reservation, expires_s) in of.items()
            )
            for of in (running, late)
        )

    def _keeps(self, reservation_id: str) -> bool:
        return reservation_id in self._open or reservation_id in self._late

    def _ended(self, reservation: Reservation) -> list[_Pair]:
        """Return what a reservation drew on, as the limits are now; it no longer runs."""
        pairs = [self._pairs.get(claim.bucket) for claim in reservation.claims]
        found = [pair for pair in pairs if pair is not None]
        for pair in found:
            pair.running = max(0, pair.running - 1)
        return found

    def _advance(self) -> float:
        """Return the latest time seen, having dropped what has expired by then.

        A dropped bucket must not come back in its own past.
        """
        now_s = self._latest_s = max(self._latest_s, self._clock())
        self._drop_expired(now_s)
        return now_s

    def _take(self, reservation: Reservation, pairs: list[_Pair]) -> None:
        for pair in pairs:
            pair.running += 1
            if pair.requests is not None:
                pair.requests.take(1)
            if pair.tokens is not None:
                pair.tokens.take(reservation.tokens)
        self._open[reservation.reservation_id] = (reservation, self._latest_s + self._ttl_s)

    def _drop_expired(self, now_s: float) -> None:
        while self._charged and next(iter(self._charged.values())) <= now_s:
            self._charged.popitem(last=False)
        for reservation, expires_s in _expired(self._open, now_s):
            self._ended(reservation)
            self._late[reservation.reservation_id] = reservation, expires_s + LATE_S
        for _ in _expired(self._late, now_s):
            pass

    def _drop_idle(self, now_s: float) -> None:
        """Look at the longest unused pairs: a full one is the same as none."""
        for _ in range(min(_SWEEP, len(self._pairs))):
            name, pair = next(iter(self._pairs.items()))
            for bucket in (pair.requests, pair.tokens):
                if bucket is not None:
                    bucket.refill(now_s)
            if pair.is_idle:
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


def _expired(
    kept: OrderedDict[str, tuple[Reservation, float]], now_s: float
) -> Iterator[tuple[Reservation, float]]:
    """Take out, and yield, what has expired, and the oldest of more than there may be."""
    while kept:
        name, (reservation, expires_s) = next(iter(kept.items()))
        if now_s < expires_s and len(kept) < MAX_RESERVATIONS:
            return
        del kept[name]
        yield reservation, expires_s


def tightest(states: Iterable[BucketState | None]) -> BucketState | None:
    """Return the state with the least left, None where nothing is limited."""
    limited = [state for state in states if state is not None]
    return min(limited, key=lambda state: state.remaining, default=None)


def _begun(capacity: int | None, left: int | None, at_s: float) -> Bucket | None:
    if capacity is None:
        return None
    bucket = Bucket.full(capacity, at_s)
    if left is not None:
        bucket.take(max(0, capacity - left))
    return bucket


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
    bucket: Bucket | None
    wait_s: float | None


def _longest_refusal(pairs: list[_Pair], reservation: Reservation) -> _Refusal | None:
    """Return what refuses for the longest time, None where nothing does."""
    if all(map(_fits, pairs, reservation.claims, repeat(reservation.tokens))):
        return None
    refusals = []
    for pair, claim in zip(pairs, reservation.claims, strict=True):
        most = claim.limits.concurrent_requests
        if most is not None and pair.running >= most:
            refusals.append(_Refusal("concurrency", None, BUSY_S))
        if pair.requests is not None:
            refusals.append(_Refusal("requests", pair.requests, pair.requests.wait_s(1)))
        if pair.tokens is not None:
            wait_s = pair.tokens.wait_s(reservation.tokens)
            refusals.append(_Refusal("tokens", pair.tokens, wait_s))
    return max(refusals, key=_wait_s)


def _fits(pair: _Pair, claim: Claim, tokens: int) -> bool:
    most = claim.limits.concurrent_requests
    return (
        (most is None or pair.running < most)
        and (pair.requests is None or pair.requests.has(1))
        and (pair.tokens is None or pair.tokens.has(tokens))
    )


def _wait_s(refusal: _Refusal) -> float:
    return math.inf if refusal.wait_s is None else refusal.wait_s


def _decision(pairs: list[_Pair], refusal: _Refusal | None = None) -> Decision:
    states = tuple((_state(pair.requests), _state(pair.tokens)) for pair in pairs)
    requests = tightest(state for state, _ in states)
    tokens = tightest(state for _, state in states)
    if refusal is not None and refusal.limited == "requests":
        requests = _state(refusal.bucket)
    elif refusal is not None and refusal.limited == "tokens":
        tokens = _state(refusal.bucket)
    return Decision(
        admitted=refusal is None,
        requests=requests,
        tokens=tokens,
        limited=refusal.limited if refusal else None,
        retry_after_s=refusal.wait_s if refusal else None,
        claims=states if len(states) > 1 else (),
    )


def _state(bucket: Bucket | None) -> BucketState | None:
    return BucketState(bucket.capacity, bucket.remaining, bucket.reset_s) if bucket else None
