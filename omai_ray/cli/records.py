"""`omai-ray usage` and `omai-ray audit`: what was used, and what was done."""

from __future__ import annotations

import argparse

from omai_ray.cli.common import (
    Commands,
    add_json,
    database_command,
    date,
    moment,
    show,
    with_administration,
    with_registry,
)
from omai_ray.identity.administration import Administration
from omai_ray.identity.paging import MAX_PAGE
from omai_ray.identity.registry import Registry
from omai_ray.ledger import UsageLedger, UsageTotals
from omai_ray.store import AuditEntry


def add(commands: Commands) -> None:
    """Add the commands."""
    usage = database_command(commands, "usage", "sum up what was used, by model", _usage)
    usage.add_argument("--account", help="of this account alone, by name or id")
    usage.add_argument("--since", type=moment, default=0.0, metavar="DATE",
        help="such as 2026-11-01, UTC")  # fmt: skip
    usage.add_argument("--until", type=moment, metavar="DATE", help="left out itself")
    add_json(usage)
    audit = database_command(commands, "audit", "read the audit log, newest first", _audit)
    audit.add_argument("--account", help="about this account alone, by name or id")
    audit.add_argument("--actor", metavar="ID", help="by this user or key alone")
    audit.add_argument("--action", help="such as key.create or session.login")
    audit.add_argument("--target", metavar="ID", help="done to this alone")
    audit.add_argument("--limit", type=int, default=50, help="at most so many (default: 50)")
    add_json(audit)


def _usage(args: argparse.Namespace) -> int:
    async def read(registry: Registry) -> dict[str, UsageTotals]:
        account_id = None
        if args.account is not None:
            account_id = (await Administration(registry).accounts.get(args.account)).id
        ledger = UsageLedger(registry.store)
        return await ledger.totals_by_model(account_id, args.since, args.until)

    rows = [
        {
            "model": model,
            "requests": totals.requests,
            "prompt_tokens": totals.prompt_tokens,
            "completion_tokens": totals.completion_tokens,
            "cached_tokens": totals.cached_tokens,
        }
        for model, totals in with_registry(args, read).items()
    ]
    show(rows, args.json)
    return 0


def _audit(args: argparse.Namespace) -> int:
    async def read(admin: Administration) -> list[AuditEntry]:
        account_id = None
        if args.account is not None:
            account_id = (await admin.accounts.get(args.account)).id
        found: list[AuditEntry] = []
        after = None
        while len(found) < args.limit:
            page = await admin.audit.list(
                account_id=account_id,
                actor=args.actor,
                action=args.action,
                target=args.target,
                after=after,
                limit=min(MAX_PAGE, args.limit - len(found)),
            )
            found += page.items
            if not page.has_more:
                break
            after = str(page.items[-1].id)
        return found

    rows = [
        {
            "time": date(entry.at),
            "actor": entry.actor_name or entry.actor,
            "action": entry.action,
            "target": entry.target,
            "outcome": entry.outcome,
            "source": entry.source,
            "request_id": entry.request_id,
            "details": entry.details,
        }
        for entry in with_administration(args, read)
    ]
    show(rows, args.json)
    return 0
