"""What was used, by whom: one durable record for each request."""

from __future__ import annotations

from omai_ray.ledger.ledger import UsageLedger, UsageRecord, UsageTotals

__all__ = ["UsageLedger", "UsageRecord", "UsageTotals"]
