"""The buckets that all ingress replicas share: one detached actor, asked in batches.

While a call is in flight, what arrives waits and goes out with the next one: a round trip is paid
once for many requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import ray

from omai_ray.errors import Overloaded
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.protocol import Decision, Reservation

ACTOR_NAME = "omai-limiter"
NAMESPACE = "omai"
DEADLINE_S = 5.0
MAX_WAITING = 10_000

Settlement = tuple[str, int]

_log = logging.getLogger(__name__)


class LimiterActor:
    """Keeps the buckets. Its loss is a minute of quota; Ray starts it again, empty."""

    def __init__(self) -> None:
        self._buckets = InProcessBuckets()

    async def call(
        self, reservations: Sequence[Reservation], settlements: Sequence[Settlement]
    ) -> list[Decision]:
        """Settle, then decide, in the order given."""
        self._buckets.settle_many(settlements)
        return self._buckets.reserve_many(reservations)


def limiter_actor() -> Any:
    """Return the cluster's limiter, started if it is not there."""
    handle: Any = (
        ray.remote(LimiterActor)
        .options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=3,
        )
        .remote()
    )
    return handle


class RayLimiter:
    """Implements Limiter over the shared actor. Raises Overloaded where it does not answer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._reservations: list[tuple[Reservation, asyncio.Future[Decision]]] = []
        self._settlements: list[Settlement] = []
        self._settled: list[asyncio.Future[None]] = []
        self._sending: asyncio.Task[None] | None = None

    async def reserve(self, reservation: Reservation) -> Decision:
        """Take a request and its tokens from the bucket, both or neither."""
        if len(self._reservations) >= MAX_WAITING:
            raise _away()
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._reservations.append((reservation, decided))
        self._send()
        return await decided

    async def settle(self, reservation_id: str, used_tokens: int) -> None:
        """Return what was reserved and not used, or take what was used beyond it."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settlements.append((reservation_id, used_tokens))
        self._settled.append(settled)
        self._send()
        await settled

    def _send(self) -> None:
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._reservations or self._settlements:
                await self._send_batch()
        finally:
            self._sending = None

    async def _send_batch(self) -> None:
        reservations, self._reservations = self._reservations, []
        settlements, self._settlements = self._settlements, []
        settled, self._settled = self._settled, []
        waiting: list[asyncio.Future[Decision] | asyncio.Future[None]] = [
            *(decided for _, decided in reservations),
            *settled,
        ]
        try:
            call = self._actor.call.remote([r for r, _ in reservations], settlements)
            decisions = await asyncio.wait_for(asyncio.wrap_future(call.future()), DEADLINE_S)
            for (_, decided), decision in zip(reservations, decisions, strict=True):
                if not decided.done():
                    decided.set_result(decision)
            for done in settled:
                if not done.done():
                    done.set_result(None)
        except Exception as error:  # whatever it is, nobody may wait for ever
            _log.warning("the limiter did not answer: %s", type(error).__name__)
        finally:
            for future in waiting:
                if not future.done():
                    future.set_exception(_away())


def _away() -> Overloaded:
    return Overloaded("The rate limiter does not answer. Please try again.")
