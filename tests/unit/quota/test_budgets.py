from __future__ import annotations

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


async def test_what_this_process_adds_counts_at_once(
    budgets: MonthlyBudgets, ledger: Ledger
) -> None:
    """Without asking the ledger each time."""
    for _ in range(6):
        await budgets.require(ADA, 100)
        budgets.add(ADA, 100)
    with pytest.raises(QuotaExceeded):
        await budgets.require(ADA, 1)
    assert 1 == ledger.queries


async def test_a_new_month_begins_anew(budgets: MonthlyBudgets, clock: Any) -> None:
    """By the clock of UTC."""
    with pytest.raises(QuotaExceeded):
        await budgets.require(ADA, 1_000)
    clock.now_s += 10
    await budgets.require(ADA, 1_000)


async def test_an_account_without_a_budget_costs_no_query(
    budgets: MonthlyBudgets, ledger: Ledger
) -> None:
    """Most have none."""
    free = replace(ADA, monthly_tokens=None)
    await budgets.require(free, 10**12)
    budgets.add(free, 10**12)
    assert 0 == ledger.queries


async def test_what_is_used_counts_until_the_ledger_has_it_and_then_once(
    ledger: Ledger, clock: Any
) -> None:
    """However slow the ledger is, and whenever it is read again."""
    budgets = MonthlyBudgets(ledger.spent_in, clock, ttl_s=0.0)
    clock.now_s = 1_796_083_200.0 - 10
    recorded = budgets.add(ADA, 600)
    with pytest.raises(QuotaExceeded, match="Used 1000"):
        await budgets.require(ADA, 1)
    ledger.spent["2026-11"] += 600
    recorded()
    with pytest.raises(QuotaExceeded, match="Used 1000"):
        await budgets.require(ADA, 1)
