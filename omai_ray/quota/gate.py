"""Admitting requests: limits in, a permit or the client's 429 out."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from omai_ray.errors import RateLimited
from omai_ray.identity.principal import Principal
from omai_ray.quota.budgets import MonthlyBudgets, Spend
from omai_ray.quota.durations import go_duration
from omai_ray.quota.protocol import (
    BUSY_S,
    BucketState,
    Claim,
    Decision,
    Limited,
    Limiter,
    Limits,
    Reservation,
)
from omai_ray.quota.tiers import limits_of
from omai_ray.settings import Tier

LONGEST_RETRY_S = 60.0
"""SDKs ignore a longer wait and retry at once, unless they are told not to."""

_UNITS = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}
_log = logging.getLogger(__name__)
_background: set[asyncio.Task[None]] = set()
# OpenAI's sentence, and where the number comes from.
_REDUCE = (
    " The input or output tokens must be reduced in order to run successfully: an answer counts "
    "with its max_tokens, or with what is usual where there is none."
)


class Permit:
    """An admitted request. headers: what its response says about the limits."""

    def __init__(
        self,
        limiter: Limiter,
        reservation: Reservation,
        headers: Mapping[str, str],
        count: Spend,
    ) -> None:
        self.headers = dict(headers)
        self._recorded: Callable[[], None] | None = None
        self._limiter = limiter
        self._reservation = reservation
        self._count = count
        self._settled = False
        self._settling: asyncio.Task[None] | None = None

    def begin_settling(self, used_tokens: int) -> None:
        """Return what was not used; the first call counts. `settle` waits for it."""
        if not self._settled:
            self._settled = True
            self._recorded = self._count(used_tokens)
            if self._reservation.claims:
                self._settling = _spawn(_settle(self._limiter, self._reservation, used_tokens))

    async def settle(self, used_tokens: int) -> None:
        """Return what was not used. The first call counts, and goes on where it is cancelled.

        Never raises but CancelledError: what cannot be settled stays spent, and refills.
        """
        self.begin_settling(used_tokens)
        if self._settling is not None:
            await asyncio.shield(self._settling)

    def recorded(self) -> None:
        """Say that the ledger has, or has lost, what was settled."""
        if self._recorded is not None:
            self._recorded()
            self._recorded = None


class Gate:
    """Admits requests within their account's tier, budget, and their key's own limits."""

    def __init__(
        self, limiter: Limiter, tiers: Mapping[str, Tier], budgets: MonthlyBudgets
    ) -> None:
        self._limiter = limiter
        self._tiers = tiers
        self._budgets = budgets

    async def admit(self, principal: Principal, model: str, tokens: int, request_id: str) -> Permit:
        """Reserve a request that is expected to use so many tokens, prompt and completion.

        Raises RateLimited with its headers, QuotaExceeded, PermissionDenied for an unknown tier.
        The request id only names the reservation in logs: it need not be unique.
        """
        claims = _claims(principal, limits_of(principal.tier, self._tiers))
        reservation = Reservation(f"{request_id}.{secrets.token_hex(8)}", claims, tokens)
        count = await self._budgets.require(principal, tokens)
        if not claims:
            return Permit(self._limiter, reservation, {}, count)
        decision = await self._reserve(reservation)
        if decision.limited is not None:
            raise _refused(decision, decision.limited, model, tokens, claims)
        return Permit(self._limiter, reservation, _headers(decision), count)

    async def _reserve(self, reservation: Reservation) -> Decision:
        task = asyncio.ensure_future(self._limiter.reserve(reservation))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            _spawn(_return_late(self._limiter, reservation, task))
            raise


def _claims(principal: Principal, of_account: Limits) -> tuple[Claim, ...]:
    of_key = Limits(principal.requests_per_minute, principal.tokens_per_minute)
    claims = (
        Claim(principal.account_id, of_account),
        Claim(f"{principal.account_id}/{principal.key_id}", of_key),
    )
    return tuple(claim for claim in claims if not claim.limits.unlimited)


def _refused(
    decision: Decision, limited: Limited, model: str, tokens: int, claims: tuple[Claim, ...]
) -> RateLimited:
    if limited == "concurrency":
        return _too_many_at_once(decision, model, claims)
    state = decision.tokens if limited == "tokens" else decision.requests
    limit = state.limit if state else 0
    requested = tokens if limited == "tokens" else 1
    where = f"{model} on {_UNITS[limited]}: Limit {limit}"
    headers = _headers(decision)
    wait_s = decision.retry_after_s
    if wait_s is None:
        message = f"Request too large for {where}, Requested {requested}."
        if limited == "tokens":
            message += _REDUCE
        headers["x-should-retry"] = "false"
        return RateLimited(message, limited=limited, headers=headers)
    headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
    headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
    if wait_s > LONGEST_RETRY_S:
        headers["x-should-retry"] = "false"
    return RateLimited(
        f"Rate limit reached for {where}, Used {_used(state)}, Requested {requested}. "
        f"Please try again in {_shown_wait(wait_s)}.",
        limited=limited,
        headers=headers,
    )


def _too_many_at_once(decision: Decision, model: str, claims: tuple[Claim, ...]) -> RateLimited:
    limits = [claim.limits.concurrent_requests for claim in claims]
    limit = min(limit for limit in limits if limit is not None)
    headers = _headers(decision)
    headers |= {"Retry-After": "1", "retry-after-ms": f"{BUSY_S * 1000:.0f}"}
    return RateLimited(
        f"Rate limit reached for {model} on concurrent requests: Limit {limit}, Requested 1. "
        "Please try again when one of them has ended.",
        limited="requests",
        reason="concurrency",
        headers=headers,
    )


def _used(state: BucketState | None) -> int:
    """Return what is used of a bucket, overdrafts included, by the time that it takes to refill."""
    return math.ceil(state.reset_s * state.limit / 60 - 1e-6) if state else 0


def _shown_wait(wait_s: float) -> str:
    return go_duration(max(wait_s, 0.001))


def _headers(decision: Decision) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, state in (("requests", decision.requests), ("tokens", decision.tokens)):
        if state is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(state.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(state.remaining)
            headers[f"x-ratelimit-reset-{name}"] = go_duration(state.reset_s)
    return headers


async def _settle(limiter: Limiter, reservation: Reservation, used_tokens: int) -> None:
    try:
        await limiter.settle(reservation, used_tokens)
    except Exception as error:
        _log.warning("reservation %s was not settled: %r", reservation.reservation_id, error)


async def _return_late(
    limiter: Limiter, reservation: Reservation, reserving: asyncio.Future[Decision]
) -> None:
    """Return the tokens of a reservation whose caller went away while it was made."""
    name = reservation.reservation_id
    try:
        decision = await reserving
    except Exception as error:
        _log.warning("reservation %s failed after its caller left: %r", name, error)
        return
    if decision.admitted:
        await _settle(limiter, reservation, 0)


def _spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    _background.add(task)
    task.add_done_callback(_background.discard)
    return task
