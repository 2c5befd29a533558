"""The buckets that all ingress replicas share: detached actors, or Redis, asked in batches."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from typing import Any

import orjson
import ray

from deployments.detached import detached, keep, kept
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

_SNAPSHOT_SHARE = 0.05
_SECRET_S = 5.0
_LONGEST_LINE = 2**22

_Reservation = tuple[str, tuple[tuple[Any, ...], ...], int]
_Decision = tuple[Any, ...]
_Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_log = logging.getLogger(__name__)


def actor_name(shard: int) -> str:
    """Return the name of the actor that keeps a shard."""
    return f"omai-limiter-{shard}"


class LimiterActor:
    """Keeps a shard's buckets. Ray starts it again where it dies; it goes on from its snapshot.

    Snapshots lie in the cluster's own key-value store, so that they outlive the node. They are
    taken every snapshot_s, or less often where calls would wait for more than a twentieth of the
    time; writing one down holds up no call.
    """

    def __init__(self, name: str, snapshot_s: float) -> None:
        self._key = f"{name}-snapshot".encode()
        self._snapshot_s = snapshot_s
        self._buckets = InProcessBuckets()
        snapshot = kept(self._key)
        if snapshot is not None:
            try:
                self._buckets.restore(snapshot)
            except ValueError as error:
                _log.warning("the limiter begins with full buckets: %s", error)
        self._calls = 0
        self._snapshots: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._secret = secrets.token_bytes(32)

    async def endpoint(self) -> tuple[str, int, bytes]:
        """Return the host and port where lines are answered, and the secret that begins one."""
        if self._server is None:
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            self._server = await asyncio.start_server(self._answer, host, 0, limit=_LONGEST_LINE)
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port, self._secret

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a line's calls until it is closed; one that does not begin well gets no answer."""
        try:
            async with asyncio.timeout(_SECRET_S):
                given = await reader.readexactly(len(self._secret))
            while hmac.compare_digest(given, self._secret):
                _write(writer, await self.call(*await _read(reader)))
                await writer.drain()
        except (OSError, EOFError):  # a replica that has gone; TimeoutError is an OSError
            pass
        except ValueError as error:
            _log.warning("a replica's call was not understood: %r", error)
        finally:
            writer.close()

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
            try:
                begun_s = time.perf_counter()
                snapshot = self._buckets.snapshot()
                pause_s = (time.perf_counter() - begun_s) / _SNAPSHOT_SHARE
                await asyncio.to_thread(keep, self._key, snapshot)
            except Exception as error:
                _log.warning("the limiter's snapshot was not written: %r", error)


def _write(writer: asyncio.StreamWriter, message: Any) -> None:
    writer.write(orjson.dumps(message) + b"\n")


async def _read(reader: asyncio.StreamReader) -> Any:
    """Return the next message. Raises OSError, EOFError; ValueError for one that is none."""
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    return orjson.loads(line)


class ActorAuthority:
    """Keeps the Authority protocol over an actor of the cluster, started if it is not there.

    Ray only says where it is: calls go over a connection of their own, as arrays of numbers and
    strings, in a tenth of the time, and of the CPU time, that a call of Ray's takes.
    """

    def __init__(self, shard: int, snapshot_s: float) -> None:
        name = actor_name(shard)
        self._actor = detached(LimiterActor, name, name, snapshot_s, max_task_retries=0)
        self._line: _Line | None = None

    async def call(self, batch: Batch) -> list[Decision]:
        """Ask the actor. Raises RayError, OSError or EOFError where it is away."""
        asked = (
            [_packed(reservation) for reservation in batch.charges],
            [(reservation.reservation_id, used) for reservation, used in batch.settlements],
            [_packed(reservation) for reservation in batch.reservations],
        )
        line, self._line = self._line, None  # nobody may read the answer of a call that is given up
        reader, writer = line or await self._connect()
        try:
            _write(writer, asked)
            decided: list[_Decision] = await _read(reader)
        except BaseException:
            writer.close()
            raise
        self._line = reader, writer
        return [_unpacked_decision(decision) for decision in decided]

    async def _connect(self) -> _Line:
        host, port, secret = await self._actor.endpoint.remote()
        reader, writer = await asyncio.open_connection(host, port, limit=_LONGEST_LINE)
        writer.write(secret)
        return reader, writer

    async def close(self) -> None:
        """Leave the actor as it is: other replicas use it."""
        if self._line is not None:
            self._line[1].close()


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
