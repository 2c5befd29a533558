"""What the gate asks of whoever keeps the buckets.

Torch-free and Ray-free: the same protocol is kept by the in-process buckets, by the actor that
all ingress replicas share, and by the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

Limited = Literal["requests", "tokens", "concurrency"]
BUSY_S = 1.0
"""When to try again where too many run at once: nobody can know when one ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a caller may use in a minute, and how many requests at once; None is unlimited."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None = None

    @property
    def unlimited(self) -> bool:
        """Whether there is nothing to check."""
        return (
            self.requests_per_minute is None
            and self.tokens_per_minute is None
            and self.concurrent_requests is None
        )

    def share(self, parts: int) -> Limits:
        """Return one part of them, at least 1 of each."""

        def part(limit: int | None) -> int | None:
            return None if limit is None else max(1, limit // parts)

        return Limits(
            part(self.requests_per_minute),
            part(self.tokens_per_minute),
            part(self.concurrent_requests),
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """Limits that a request must keep. bucket: whose minute it is, an account's or a key's id."""

    bucket: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Reservation:
    """One request asking to be admitted.

    reservation_id: unique; settling twice under one id changes nothing.
    claims: all must admit it, or none is charged.
    tokens: what it is expected to use, prompt and completion; ValueError where negative, here
    already, so that one wrong caller fails alone and not with the batch that its call shares.
    """

    reservation_id: str
    claims: tuple[Claim, ...]
    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise ValueError(f"a reservation of {self.tokens} tokens")


@dataclass(frozen=True, slots=True)
class BucketState:
    """One bucket as the caller may see it.

    limit: its capacity, a minute's worth. remaining: whole units left, never negative.
    reset_s: seconds until it is full again.
    """

    limit: int
    remaining: int
    reset_s: float

    @property
    def balance(self) -> int:
        """Whole units left, negative in debt."""
        return math.floor(self.limit - self.reset_s * self.limit / 60 + 1e-6)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a reservation: admitted, or what stands in the way.

    limited: the bucket, or number of running requests, that refused. retry_after_s: when the same
    request would fit; None where it never can, because it alone exceeds the bucket.
    requests, tokens: the buckets after the decision, of several claims' the one that refused or
    has the least left; None where unlimited. claims: where there are several, each one's two.
    """

    admitted: bool
    requests: BucketState | None
    tokens: BucketState | None
    limited: Limited | None = None
    retry_after_s: float | None = None
    claims: tuple[tuple[BucketState | None, BucketState | None], ...] = ()


class Limiter(Protocol):
    """Keeps the buckets of all accounts."""

    async def reserve(self, reservation: Reservation) -> Decision:
        """Take a request and its tokens from all its buckets, or from none."""

    async def settle(self, reservation: Reservation, used_tokens: int) -> None:
        """Return what was reserved and not used, or take what was used beyond it. Idempotent."""


Settlement = tuple[Reservation, int]
"""An admitted request that has ended, and the tokens that it used."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is asked of an authority at once, in this order.

    charges: what was admitted without it, to be taken in any case. settlements: what has ended.
    reservations: what is to be decided.
    """

    charges: list[Reservation]
    settlements: list[Settlement]
    reservations: list[Reservation]


class Authority(Protocol):
    """Keeps the buckets of all accounts for many processes."""

    async def close(self) -> None:
        """Free what it holds here."""

    async def call(self, batch: Batch) -> list[Decision]:
        """Return a decision for each reservation; raise where it does not answer.

        Asking twice under one id charges once, also after it was settled where it is a charge: a
        call whose answer was lost may be repeated.
        """
