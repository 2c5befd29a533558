from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from omai_ray.errors import QuotaExceeded
from omai_ray.identity.principal import Principal
from omai_ray.quota.budgets import MonthlyBudgets

ADA = Principal("acct_1", "ada", "pro", monthly_tokens=1_000)


class Ledger:
    """Knows what was used, and counts who asks."""

    def __init__(self) -> None:
        self.spent = {"2026-11": 400}
        self.queries = 0

    async def spent_in(self, account_id: str, month: str) -> int:
        assert account_id == "acct_1"
        self.queries += 1
        return self.spent.get(month, 0)


@pytest.fixture
def ledger() -> Ledger:
    """Return a ledger of one account."""
    return Ledger()


@pytest.fixture
def budgets(ledger: Ledger, clock: Any) -> MonthlyBudgets:
    """Return budgets over it, near the end of November 2026."""
    clock.now_s = 1_796_083_200.0 - 10  # 2026-12-01T00:00:00Z
    return MonthlyBudgets(ledger.spent_in, clock)


async def test_a_request_that_would_exceed_the_budget_is_refused(budgets: MonthlyBudgets) -> None:
    """Up to the last token it fits."""
    await budgets.require(ADA, 600)
    with pytest.raises(QuotaExceeded) as caught:
        await budgets.require(ADA, 601)

    assert "Limit 1000 tokens, Used 400, Requested 601" in caught.value.message
    assert {"x-should-retry": "false"} == caught.value.headers
    assert (429, "insufficient_quota") == (caught.value.status, caught.value.code)


async def test_what_this_process_uses_counts_at_once(
    budgets: MonthlyBudgets, ledger: Ledger
) -> None:
    """Without asking the ledger each time."""
    for _ in range(6):
        use = await budgets.require(ADA, 100)
        use(100)
    with pytest.raises(QuotaExceeded):
        await budgets.require(ADA, 1)
    assert 1 == ledger.queries


async def test_what_used_nothing_leaves_nothing_behind(budgets: MonthlyBudgets) -> None:
    """A batch may fail by the million."""
    use = await budgets.require(ADA, 600)
    use(0)
    assert not budgets._uses


async def test_a_new_month_begins_anew(budgets: MonthlyBudgets, clock: Any) -> None:
    """By the clock of UTC; a request belongs to the month in which it was admitted."""
    use = await budgets.require(ADA, 600)
    clock.now_s += 10
    use(600)
    await budgets.require(ADA, 1_000)
    clock.now_s -= 10
    with pytest.raises(QuotaExceeded, match="Used 1000"):
        await budgets.require(ADA, 1)


async def test_an_account_without_a_budget_costs_no_query(
    budgets: MonthlyBudgets, ledger: Ledger
) -> None:
    """Most have none."""
    use = await budgets.require(replace(ADA, monthly_tokens=None), 10**12)
    use(10**12)()
    assert 0 == ledger.queries


async def test_what_is_used_counts_until_the_ledger_tells_it_and_then_once(
    ledger: Ledger, clock: Any
) -> None:
    """However slow the ledger is, and whenever it is read: an answer on its way is too old."""
    clock.now_s = 1_796_083_200.0 - 10
    let, reached = asyncio.Event(), asyncio.Event()

    async def slow(account_id: str, month: str) -> int:
        spent = await ledger.spent_in(account_id, month)
        reached.set()
        await let.wait()
        return spent

    budgets = MonthlyBudgets(slow, clock, ttl_s=0.0)
    let.set()
    use = await budgets.require(ADA, 500)
    let.clear()
    reached.clear()
    asking = asyncio.create_task(budgets.require(ADA, 300))
    await reached.wait()
    recorded = use(500)
    ledger.spent["2026-11"] += 500
    recorded()
    let.set()
    with pytest.raises(QuotaExceeded, match="Used 900"):
        await asking
    with pytest.raises(QuotaExceeded, match="Used 900"):
        await budgets.require(ADA, 300)
    assert not budgets._uses
