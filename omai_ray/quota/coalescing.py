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
from collections.abc import Callable, Iterable
from dataclasses import replace

from omai_ray.errors import Overloaded
from omai_ray.quota.buckets import InProcessBuckets
from omai_ray.quota.protocol import (
    Authority,
    Batch,
    BucketState,
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
_Known = tuple[BucketState | None, BucketState | None, float]
_log = logging.getLogger(__name__)


class CoalescingLimiter:
    """Keeps the Limiter protocol over an authority.

    replicas: how many processes share each limit while the authority is away; each admits at least
    one. deadline_s: how long a call may take before its decisions are made here; after that the
    authority is not asked for retry_s.
    decisions: how many there were; fallbacks: how many of them were made here.
    clock: seconds, monotonic.
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
        self._local = InProcessBuckets(clock)
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._logged_s = float("-inf")
        self.decisions = 0
        self.fallbacks = 0

    async def reserve(self, reservation: Reservation) -> Decision:
        """Take a request and its tokens from all its buckets, or from none."""
        self.decisions += 1
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
        self._local.settle_one(reservation.reservation_id, used_tokens)
        if len(self._settlements) >= MAX_OWED:
            return  # it stays spent, and refills
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settlements.append(((reservation, used_tokens), settled))
        self._send()
        if not self._is_away:
            await settled

    async def close(self) -> None:
        """Send what is owed, if that can be done at once; nobody waits after this."""
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=0.0 if self._is_away else self._deadline_s)
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        for _, decided in self._reservations:
            decided.cancel()
        _resolve(self._settlements)
        await self._authority.close()

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
                    await asyncio.sleep(max(0.001, self._away_until_s - self._clock()))
                else:
                    await self._send_batch()
        finally:
            self._sending = None

    async def _send_batch(self) -> None:
        charges, self._charges = self._charges[:MAX_BATCH], self._charges[MAX_BATCH:]
        most = 0 if self._charges else MAX_BATCH  # what is owed goes first
        settlements, self._settlements = self._settlements[:most], self._settlements[most:]
        reservations, self._reservations = self._reservations[:most], self._reservations[most:]
        batch = Batch(charges, [s for s, _ in settlements], [r for r, _ in reservations])
        try:
            decisions = await asyncio.wait_for(self._authority.call(batch), self._deadline_s)
            for (reservation, decided), decision in zip(reservations, decisions, strict=True):
                self._remember(reservation, decision)
                if not decided.done():
                    decided.set_result(decision)
        except Exception as error:  # whatever it is, nobody may wait for ever
            self._note_absence(error)
            self._charges = charges + self._charges
            self._settlements = settlements + self._settlements
            self._decide_waiting_here(reservations)
        finally:  # also where this task is cancelled
            _resolve(settlements)
            for _, decided in reservations:
                if not decided.done():
                    decided.cancel()

    def _decide_waiting_here(
        self, asked: list[tuple[Reservation, asyncio.Future[Decision]]]
    ) -> None:
        """Answer all who wait. asked: those that the authority may have admitted all the same."""
        waiting, self._reservations = self._reservations, []
        for reservation, decided in asked:
            gone = decided.done()
            admitted = not gone and self._answer(reservation, decided)
            if not admitted and len(self._settlements) < MAX_OWED:
                settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._settlements.append(((reservation, 0), settled))
        for reservation, decided in waiting:
            if not decided.done():
                self._answer(reservation, decided)
        _resolve(self._settlements)

    def _answer(self, reservation: Reservation, decided: asyncio.Future[Decision]) -> bool:
        decision = self._decide_here(reservation)
        decided.set_result(decision)
        return decision.admitted

    def _decide_here(self, reservation: Reservation) -> Decision:
        """Decide within this process's share of each limit."""
        self.fallbacks += 1
        claims = tuple(
            Claim(claim.bucket, claim.limits.share(self._replicas)) for claim in reservation.claims
        )
        for claim in claims:
            requests, tokens, at_s = self._known.get(claim.bucket, (None, None, self._clock()))
            self._local.seed(
                claim,
                requests.balance // self._replicas if requests else None,
                tokens.balance // self._replicas if tokens else None,
                at_s,
            )
        decision = self._local.reserve_one(replace(reservation, claims=claims))
        if decision.admitted and len(self._charges) < MAX_OWED:
            self._charges.append(reservation)
            self._send()
        return _as_of_all(decision, reservation, self._replicas, self._retry_s)

    def _remember(self, reservation: Reservation, decision: Decision) -> None:
        """Keep what the authority says is left: it knows better than the buckets here."""
        states = decision.claims or ((decision.requests, decision.tokens),)
        for claim, (requests, tokens) in zip(reservation.claims, states, strict=True):
            self._local.forget(claim.bucket)
            self._known[claim.bucket] = (requests, tokens, self._clock())
            self._known.move_to_end(claim.bucket)
        while len(self._known) > MAX_KNOWN:
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


def _resolve(settlements: Iterable[tuple[Settlement, asyncio.Future[None]]]) -> None:
    for _, settled in settlements:
        if not settled.done():
            settled.set_result(None)


def _as_of_all(
    decision: Decision, reservation: Reservation, replicas: int, retry_s: float
) -> Decision:
    """Return a decision of one share as a client may see it: with the limits themselves.

    What is too large for the share alone may fit once the authority is back.
    """
    limits = [claim.limits for claim in reservation.claims]

    def whole(state: BucketState | None, all_limits: Iterable[int | None]) -> BucketState | None:
        for limit in all_limits:
            if state and limit is not None and max(1, limit // replicas) == state.limit:
                return replace(state, limit=limit)
        return state

    wait_s = decision.retry_after_s
    fits = all(
        each.tokens_per_minute is None or reservation.tokens <= each.tokens_per_minute
        for each in limits
    )
    if decision.limited is not None and wait_s is None and fits:
        wait_s = retry_s
    return replace(
        decision,
        requests=whole(decision.requests, [each.requests_per_minute for each in limits]),
        tokens=whole(decision.tokens, [each.tokens_per_minute for each in limits]),
        retry_after_s=wait_s,
    )


class ShardedLimiter:
    """Spreads accounts over several limiters; all that concerns an account is with one of them."""

    def __init__(self, shards: list[CoalescingLimiter]) -> None:
        self._shards = shards

    @property
    def decisions(self) -> int:
        """How many decisions there were."""
        return sum(shard.decisions for shard in self._shards)

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
        """Close every shard."""
        for shard in self._shards:
            await shard.close()

    def _shard(self, reservation: Reservation) -> CoalescingLimiter:
        account = reservation.claims[0].bucket.partition("/")[0]
        return self._shards[zlib.crc32(account.encode()) % len(self._shards)]
