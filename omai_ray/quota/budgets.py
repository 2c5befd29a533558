"""Monthly budgets: what an account has used of its calendar month, UTC, in the ledger."""

from __future__ import annotations

import time
from collections import Counter
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

    spent_in: an account's id and a month (`2026-11`) -> tokens. What this process uses counts as
    soon as a request ends, what others do within ttl_s. answer_s: how long a slow database is
    waited for. clock: seconds since the epoch.
    """

    def __init__(
        self,
        spent_in: SpentIn,
        clock: Callable[[], float] = time.time,
        ttl_s: float = 5.0,
        answer_s: float | None = None,
    ) -> None:
        async def load(name: str) -> _Spent:
            account_id, _, month = name.partition("/")
            return _Spent(await spent_in(account_id, month))

        self._clock = clock
        self._spent = Lookups(load, time.monotonic, ttl_s, answer_s=answer_s)
        self._unrecorded: Counter[str] = Counter()

    async def require(self, principal: Principal, tokens: int) -> None:
        """Raise QuotaExceeded where a request of so many tokens does not fit."""
        budget = principal.monthly_tokens
        if budget is None:
            return
        month = month_of(self._clock())
        name = f"{principal.account_id}/{month}"
        spent = await self._spent.get(name)
        used = (spent.tokens if spent else 0) + self._unrecorded[name]
        if used + tokens > budget:
            raise QuotaExceeded(
                f"You exceeded your monthly budget: Limit {budget} tokens, Used {used}, "
                f"Requested {tokens}. It begins anew with the next month (UTC).",
                headers={"x-should-retry": "false"},
            )

    def add(self, principal: Principal, tokens: int) -> Callable[[], None]:
        """Count what a request has used; call what is returned once the ledger has it, or lost it.

        From then on it is part of what the ledger says, and until that is read again of what it
        said last.
        """
        if principal.monthly_tokens is None:
            return _nothing
        name = f"{principal.account_id}/{month_of(self._clock())}"
        self._unrecorded[name] += tokens

        def recorded() -> None:
            self._unrecorded[name] -= tokens
            if self._unrecorded[name] <= 0:
                del self._unrecorded[name]
            known = self._spent.peek(name)
            if known is not None:
                known.tokens += tokens

        return recorded


def _nothing() -> None:
    pass
