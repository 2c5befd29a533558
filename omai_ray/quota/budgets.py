"""Monthly budgets: what an account has used of its calendar month, UTC, in the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from omai_ray.errors import QuotaExceeded
from omai_ray.identity.lookups import Lookups
from omai_ray.identity.principal import Principal
from omai_ray.ledger.ledger import month_of

SpentIn = Callable[[str, str], Coroutine[Any, Any, int]]

# To be called with the tokens that were used; gives what to call once the ledger has them.
Spend = Callable[[int], Callable[[], None]]


@dataclass(slots=True, eq=False)
class _Use:
    """What a request of this process has used; recorded_s: since when the ledger has it."""

    tokens: int
    recorded_s: float | None = None


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
        self._spent_in = spent_in
        self._clock = clock
        self._spent = Lookups(self._load, time.monotonic, ttl_s, answer_s=answer_s)
        self._uses: dict[str, list[_Use]] = {}

    async def require(self, principal: Principal, tokens: int) -> Spend:
        """Raise QuotaExceeded where a request of so many tokens does not fit.

        What it uses belongs to the month in which it was admitted.
        """
        budget = principal.monthly_tokens
        if budget is None:
            return _unbounded
        name = f"{principal.account_id}/{month_of(self._clock())}"
        spent = await self._spent.get(name) or 0
        used = spent + sum(use.tokens for use in self._uses.get(name, ()))
        if used + tokens > budget:
            raise QuotaExceeded(
                f"You exceeded your monthly budget: Limit {budget} tokens, Used {used}, "
                f"Requested {tokens}. It begins anew with the next month (UTC).",
                headers={"x-should-retry": "false"},
            )
        return partial(self._add, name)

    def _add(self, name: str, tokens: int) -> Callable[[], None]:
        if tokens == 0:
            return _nothing
        use = _Use(tokens)
        self._uses.setdefault(name, []).append(use)

        def recorded() -> None:
            use.recorded_s = time.monotonic()

        return recorded

    async def _load(self, name: str) -> int:
        """Ask the ledger; what it had before it was asked is part of its answer from then on."""
        account_id, _, month = name.partition("/")
        begun_s = time.monotonic()
        spent = await self._spent_in(account_id, month)
        uses = self._uses.pop(name, [])
        left = [use for use in uses if use.recorded_s is None or use.recorded_s > begun_s]
        if left:
            self._uses[name] = left
        return spent


def _unbounded(tokens: int) -> Callable[[], None]:
    return _nothing


def _nothing() -> None:
    pass
