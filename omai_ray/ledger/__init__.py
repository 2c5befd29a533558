"""What was used, by whom: one durable record for each request."""

from __future__ import annotations

from omai_ray.ledger.ledger import Grouping, UsageLedger, UsageRecord, UsageRow, UsageTotals

__all__ = ["Grouping", "UsageLedger", "UsageRecord", "UsageRow", "UsageTotals"]
