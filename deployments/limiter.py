"""The buckets that all ingress replicas share: detached actors, or Redis, asked in batches."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import ray
from ray.experimental import internal_kv

from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.coalescing import CoalescingLimiter, ShardedLimiter
from omai_ray.quota.protocol import (
    Authority,
    Batch,
    BucketState,
    Claim,
    Decision,
    Limits,
    Reservation,
)
from omai_ray.quota.redis_authority import RedisAuthority
from omai_ray.settings import LimiterSettings

NAMESPACE = "omai"
_SNAPSHOT_SHARE = 0.05

_Reservation = tuple[str, tuple[tuple[Any, ...], ...], int]
_Decision = tuple[Any, ...]

_log = logging.getLogger(__name__)


def actor_name(shard: int) -> str:
    """Return the name of the actor that keeps a shard."""
    return f"omai-limiter-{shard}"


class LimiterActor:
    """Keeps a shard's buckets. Ray starts it again where it dies; it goes on from its snapshot.

    Snapshots lie in the cluster's own key-value store, so that they outlive the node. They are
    taken every snapshot_s, or less often where they would take more than a twentieth of the time.
    """

    def __init__(self, name: str, snapshot_s: float) -> None:
        self._key = f"{name}-snapshot".encode()
        self._snapshot_s = snapshot_s
        self._buckets = InProcessBuckets()
        kept = internal_kv._internal_kv_get(self._key, namespace=NAMESPACE.encode())
        if kept is not None:
            try:
                self._buckets.restore(kept)
            except ValueError as error:
                _log.warning("the limiter begins with full buckets: %s", error)
        self._calls = 0
        self._snapshots: asyncio.Task[None] | None = None

    async def call(
        self,
        charges: list[_Reservation],
        settlements: list[tuple[str, int]],
        reservations: list[_Reservation],
    ) -> list[_Decision]:
        """Charge, settle and decide, each in the order given; see `ActorAuthority` for the form."""
        self._calls += 1
        if self._snapshots is None:
            self._snapshots = asyncio.create_task(self._keep_snapshots())
        for charge in charges:
            self._buckets.charge_one(_unpacked(charge))
        for reservation_id, used_tokens in settlements:
            self._buckets.settle_one(reservation_id, used_tokens)
        reserve = self._buckets.reserve_one
        return [_packed_decision(reserve(_unpacked(asked))) for asked in reservations]

    async def _keep_snapshots(self) -> None:
        seen = 0
        pause_s = 0.0
        while True:
            await asyncio.sleep(max(self._snapshot_s, pause_s))
            if self._calls == seen:
                continue
            seen = self._calls
            begun_s = time.perf_counter()
            try:
                snapshot = self._buckets.snapshot()
                await asyncio.to_thread(_put, self._key, snapshot)
            except Exception as error:
                _log.warning("the limiter's snapshot was not written: %r", error)
            pause_s = (time.perf_counter() - begun_s) / _SNAPSHOT_SHARE


def _put(key: bytes, value: bytes) -> None:
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=NAMESPACE.encode())


class ActorAuthority:
    """Keeps the Authority protocol over an actor of the cluster, started if it is not there.

    Between them everything is tuples of numbers and strings: they cross processes thirty times as
    fast as the dataclasses, which would take half of the time of a decision.
    """

    def __init__(self, shard: int, snapshot_s: float) -> None:
        name = actor_name(shard)
        self._actor: Any = (
            ray.remote(LimiterActor)
            .options(
                name=name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=0,
            )
            .remote(name, snapshot_s)
        )

    async def call(self, batch: Batch) -> list[Decision]:
        """Ask the actor. Raises RayError where it is away."""
        decided: list[_Decision] = await self._actor.call.remote(
            [_packed(reservation) for reservation in batch.charges],
            [(reservation.reservation_id, used) for reservation, used in batch.settlements],
            [_packed(reservation) for reservation in batch.reservations],
        )
        return [_unpacked_decision(decision) for decision in decided]

    async def close(self) -> None:
        """Leave the actor as it is: other replicas use it."""


def _packed(reservation: Reservation) -> _Reservation:
    claims = tuple(
        (
            claim.bucket,
            claim.limits.requests_per_minute,
            claim.limits.tokens_per_minute,
            claim.limits.concurrent_requests,
        )
        for claim in reservation.claims
    )
    return reservation.reservation_id, claims, reservation.tokens


def _unpacked(packed: _Reservation) -> Reservation:
    reservation_id, claims, tokens = packed
    return Reservation(
        reservation_id,
        tuple(Claim(bucket, Limits(*limits)) for bucket, *limits in claims),
        tokens,
    )


def _packed_decision(decision: Decision) -> _Decision:
    return (
        decision.admitted,
        _packed_state(decision.requests),
        _packed_state(decision.tokens),
        decision.limited,
        decision.retry_after_s,
        tuple(
            (_packed_state(requests), _packed_state(tokens)) for requests, tokens in decision.claims
        ),
    )


def _packed_state(state: BucketState | None) -> tuple[int, int, float] | None:
    return (state.limit, state.remaining, state.reset_s) if state else None


def _unpacked_decision(packed: _Decision) -> Decision:
    admitted, requests, tokens, limited, retry_after_s, claims = packed
    return Decision(
        admitted,
        _unpacked_state(requests),
        _unpacked_state(tokens),
        limited,
        retry_after_s,
        tuple((_unpacked_state(each), _unpacked_state(other)) for each, other in claims),
    )


def _unpacked_state(packed: tuple[int, int, float] | None) -> BucketState | None:
    return BucketState(*packed) if packed else None


def open_limiter(settings: LimiterSettings, replicas: int) -> ShardedLimiter:
    """Return the limiter of an ingress replica, of which there are so many. Raises ConfigError."""
    authorities: list[Authority]
    if settings.backend == "redis":
        timeout_s = settings.deadline_ms / 1000
        authorities = [RedisAuthority(settings.redis_url or "", timeout_s=timeout_s)]
    else:
        shards = range(settings.shards)
        authorities = [ActorAuthority(shard, settings.snapshot_s) for shard in shards]
    deadline_s = settings.deadline_ms / 1000
    return ShardedLimiter(
        [CoalescingLimiter(a, replicas, deadline_s=deadline_s) for a in authorities]
    )
