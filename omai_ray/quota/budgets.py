"""Monthly budgets: what an account has used of its calendar month, UTC, in the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from omai_ray.errors import QuotaExceeded
from omai_ray.identity.lookups import Lookups
from omai_ray.identity.principal import Principal
from omai_ray.ledger.ledger import month_of

SpentIn = Callable[[str, str], Coroutine[Any, Any, int]]


@dataclass(slots=True)
class _Spent:
    tokens: int


class MonthlyBudgets:
    """Refuses requests that would exceed their account's budget.

    spent_in: an account's id and a month (`2026-11`) -> tokens. What this process adds counts at
    once, what others do within ttl_s; a request under way counts when it ends.
    clock: seconds since the epoch.
    """

    def __init__(
        self, spent_in: SpentIn, clock: Callable[[], float] = time.time, ttl_s: float = 5.0
    ) -> None:
        async def load(name: str) -> _Spent:
            account_id, _, month = name.partition("/")
            return _Spent(await spent_in(account_id, month))

        self._clock = clock
        self._spent = Lookups(load, time.monotonic, ttl_s)

    async def require(self, principal: Principal, tokens: int) -> None:
        """Raise QuotaExceeded where a request of so many tokens does not fit."""
        budget = principal.monthly_tokens
        if budget is None:
            return
        month = month_of(self._clock())
        name = f"{principal.account_id}/{month}"
        spent = await self._spent.get(name)
        used = spent.tokens if spent else 0
        if used + tokens > budget:
            raise QuotaExceeded(
                f"You exceeded your monthly budget: Limit {budget} tokens, Used {used}, "
                f"Requested {tokens}. It begins anew with the next month (UTC).",
                headers={"x-should-retry": "false"},
            )

    def add(self, principal: Principal, tokens: int) -> None:
        """Count what a request of this process has used."""
        if principal.monthly_tokens is not None:
            known = self._spent.peek(f"{principal.account_id}/{month_of(self._clock())}")
            if known is not None:
                known.tokens += tokens
