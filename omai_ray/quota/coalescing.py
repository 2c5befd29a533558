"""An authority's client in one process: calls joined, and decisions made here while it is away.

While a call is in flight, what arrives waits and goes out with the next one: a round trip is paid
once for many requests. Where no answer comes in time, this process decides by itself within its
share of each limit, beginning with what it last knew to be left, and charges the authority for it
as soon as that answers again.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable

from omai_ray.errors import Overloaded
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.protocol import (
    Authority,
    Batch,
    Claim,
    Decision,
    Reservation,
    Settlement,
)

DEADLINE_S = 0.25
RETRY_S = 1.0
MAX_WAITING = 10_000
MAX_BATCH = 500
MAX_OWED = 100_000
MAX_KNOWN = 10_000
_LOG_EVERY_S = 10.0
_log = logging.getLogger(__name__)


class CoalescingLimiter:
    """Keeps the Limiter protocol over an authority.

    replicas: how many processes share each limit while the authority is away. deadline_s: how long
    a decision may take before it is made here; after that it is not asked for retry_s.
    fallbacks: how many decisions were made here. clock: seconds, monotonic.
    """

    def __init__(
        self,
        authority: Authority,
        replicas: int = 1,
        *,
        deadline_s: float = DEADLINE_S,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authority = authority
        self._replicas = replicas
        self._deadline_s = deadline_s
        self._retry_s = retry_s
        self._clock = clock
        self._reservations: list[tuple[Reservation, asyncio.Future[Decision]]] = []
        self._settlements: list[tuple[Settlement, asyncio.Future[None]]] = []
        self._charges: list[Reservation] = []
        self._sending: asyncio.Task[None] | None = None
        self._away_until_s = float("-inf")
        self._local: InProcessBuckets | None = None
        self._known: OrderedDict[str, tuple[Decision, float]] = OrderedDict()
        self._logged_s = float("-inf")
        self.fallbacks = 0

    async def reserve(self, reservation: Reservation) -> Decision:
        """Take a request and its tokens from all its buckets, or from none."""
        if self._is_away:
            return self._decide_here(reservation)
        if len(self._reservations) >= MAX_WAITING:
            raise Overloaded("Too many requests at once. Please try again.")
        decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._reservations.append((reservation, decided))
        self._send()
        return await decided

    async def settle(self, reservation: Reservation, used_tokens: int) -> None:
        """Return what was reserved and not used, or take what was used beyond it.

        While the authority is away this returns at once; it is told later.
        """
        if self._local is not None:
            self._local.settle_one(reservation.reservation_id, used_tokens)
        if len(self._settlements) >= MAX_OWED:
            return  # it stays spent, and refills
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settlements.append(((reservation, used_tokens), settled))
        self._send()
        if not self._is_away:
            await settled

    async def close(self) -> None:
        """Give up what has not been sent."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    @property
    def _is_away(self) -> bool:
        return self._clock() < self._away_until_s

    def _send(self) -> None:
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        try:
            while self._reservations or self._settlements or self._charges:
                if self._is_away:
                    await asyncio.sleep(self._retry_s)
                else:
                    await self._send_batch()
        finally:
            self._sending = None

    async def _send_batch(self) -> None:
        charges, self._charges = self._charges[:MAX_BATCH], self._charges[MAX_BATCH:]
        room = [] if self._charges else self._settlements  # never before its own charge
        settlements, self._settlements = (
            room[:MAX_BATCH],
            self._settlements[len(room[:MAX_BATCH]) :],
        )
        reservations = self._reservations[:MAX_BATCH]
        self._reservations = self._reservations[MAX_BATCH:]
        batch = Batch(charges, [s for s, _ in settlements], [r for r, _ in reservations])
        try:
            decisions = await asyncio.wait_for(self._authority.call(batch), self._deadline_s)
            for (reservation, decided), decision in zip(reservations, decisions, strict=True):
                self._remember(reservation, decision)
                if not decided.done():
                    decided.set_result(decision)
            self._local = None
        except Exception as error:  # whatever it is, nobody may wait for ever
            self._note_absence(error)
            self._charges = charges + self._charges
            self._settlements = settlements + self._settlements
            self._decide_waiting_here(reservations)
        else:
            for _, settled in settlements:
                if not settled.done():
                    settled.set_result(None)
        finally:  # also where this task is cancelled
            for _, decided in reservations:
                if not decided.done():
                    decided.cancel()

    def _decide_waiting_here(
        self, reservations: list[tuple[Reservation, asyncio.Future[Decision]]]
    ) -> None:
        waiting, self._reservations = reservations + self._reservations, []
        for reservation, decided in waiting:
            if not decided.done():
                decided.set_result(self._decide_here(reservation))
        for _, settled in self._settlements:
            if not settled.done():
                settled.set_result(None)

    def _decide_here(self, reservation: Reservation) -> Decision:
        """Decide within this process's share of each limit."""
        self.fallbacks += 1
        if self._local is None:
            self._local = InProcessBuckets(self._clock)
        claims = tuple(
            Claim(claim.bucket, claim.limits.share(self._replicas)) for claim in reservation.claims
        )
        known, at_s = self._known.get(reservation.claims[0].bucket, (None, self._clock()))
        for claim in claims:
            requests, tokens = (known.requests, known.tokens) if known else (None, None)
            self._local.seed(
                claim,
                requests.remaining // self._replicas if requests else None,
                tokens.remaining // self._replicas if tokens else None,
                at_s,
            )
        decision = self._local.reserve_one(
            Reservation(reservation.reservation_id, claims, reservation.tokens)
        )
        if decision.admitted and len(self._charges) < MAX_OWED:
            self._charges.append(reservation)
            self._send()
        return decision

    def _remember(self, reservation: Reservation, decision: Decision) -> None:
        bucket = reservation.claims[0].bucket
        self._known[bucket] = (decision, self._clock())
        self._known.move_to_end(bucket)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _note_absence(self, error: Exception) -> None:
        now_s = self._clock()
        self._away_until_s = now_s + self._retry_s
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            _log.warning(
                "the limiter does not answer (%s): decisions are made in this process, within 1/%d "
                "of each limit; %d before",
                type(error).__name__,
                self._replicas,
                self.fallbacks,
            )


class ShardedLimiter:
    """Spreads accounts over several limiters; all that concerns an account is with one of them."""

    def __init__(self, shards: list[CoalescingLimiter]) -> None:
        self._shards = shards

    @property
    def fallbacks(self) -> int:
        """How many decisions were made in this process."""
        return sum(shard.fallbacks for shard in self._shards)

    async def reserve(self, reservation: Reservation) -> Decision:
        """Take a request and its tokens from all its buckets, or from none."""
        return await self._shard(reservation).reserve(reservation)

    async def settle(self, reservation: Reservation, used_tokens: int) -> None:
        """Return what was reserved and not used, or take what was used beyond it."""
        await self._shard(reservation).settle(reservation, used_tokens)

    async def close(self) -> None:
        """Give up what has not been sent."""
        for shard in self._shards:
            await shard.close()

    def _shard(self, reservation: Reservation) -> CoalescingLimiter:
        account = reservation.claims[0].bucket.partition("/")[0]
        return self._shards[zlib.crc32(account.encode()) % len(self._shards)]
