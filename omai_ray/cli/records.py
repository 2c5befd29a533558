"""`omai-ray usage` and `omai-ray audit`: what was used, and what was done."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from sqlalchemy import BigInteger, Double, Integer

from omai_ray.cli.common import (
    Commands,
    add_json,
    check_limit,
    database_command,
    date,
    everything,
    moment,
    show,
    with_administration,
    with_registry,
)
from omai_ray.errors import ConfigError
from omai_ray.identity.administration import Administration
from omai_ray.identity.paging import MAX_PAGE
from omai_ray.identity.registry import Registry
from omai_ray.ledger import Grouping, UsageLedger, UsageRow
from omai_ray.store import AuditEntry
from omai_ray.store.tables import usage as usage_table


def add(commands: Commands) -> None:
    """Add the commands."""
    usage = database_command(commands, "usage", "sum up what was used, or export it", _usage)
    usage.add_argument("--account", help="of this account alone, by name or id")
    usage.add_argument("--since", type=moment, default=0.0, metavar="DATE",
        help="such as 2026-11-01, UTC")  # fmt: skip
    usage.add_argument("--until", type=moment, metavar="DATE", help="left out itself")
    usage.add_argument("--by", type=_groupings, default=("model",), metavar="NAMES",
        help="hour or day, account, model, key, with commas between (default: model)")  # fmt: skip
    usage.add_argument("--parquet", type=Path, metavar="FILE",
        help="write every request's record to this file instead")  # fmt: skip
    add_json(usage)
    audit = database_command(commands, "audit", "read the audit log, newest first", _audit)
    audit.add_argument("--account", help="about this account alone, by name or id")
    audit.add_argument("--actor", metavar="ID", help="by this user or key alone")
    audit.add_argument("--action", help="such as key.create or session.login")
    audit.add_argument("--target", metavar="ID", help="done to this alone")
    audit.add_argument("--limit", type=int, default=50, help="at most so many (default: 50)")
    add_json(audit)


def _groupings(text: str) -> tuple[Grouping, ...]:
    names = tuple(text.split(","))
    wrong = [name for name in names if name not in get_args(Grouping)]
    if wrong or {"hour", "day"} <= set(names):
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(get_args(Grouping))} (hour or day), got '{text}'"
        )
    return names  # type: ignore[return-value]


def _usage(args: argparse.Namespace) -> int:
    if args.parquet is not None:
        return _export(args)

    async def read(registry: Registry) -> list[dict[str, Any]]:
        account_id, names = await _accounts(registry, args)
        rows = await UsageLedger(registry.store).report(account_id, args.since, args.until, args.by)
        return [_usage_row(row, args.by, names) for row in rows]

    show(with_registry(args, read), args.json)
    return 0


async def _accounts(
    registry: Registry, args: argparse.Namespace
) -> tuple[str | None, dict[str, str]]:
    """Return the id of the account that is asked for, if any, and the names of all where needed."""
    accounts = Administration(registry).accounts
    account_id = await accounts.id_of(args.account)
    if "account" not in args.by:
        return account_id, {}
    return account_id, {account.id: account.name for account in await everything(accounts.list)}


def _usage_row(row: UsageRow, by: tuple[Grouping, ...], names: dict[str, str]) -> dict[str, Any]:
    account = names.get(row.account_id or "", row.account_id)
    told = {"hour": date(row.start), "day": date(row.start), "account": account}
    told |= {"model": row.model, "key": row.key_id}
    return {**{name: told[name] for name in by}, **asdict(row.totals)}


def _export(args: argparse.Namespace) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {Integer: pa.int64(), BigInteger: pa.int64(), Double: pa.float64()}
    schema = pa.schema([(c.name, kinds.get(type(c.type), pa.string())) for c in usage_table.c])

    async def write(registry: Registry) -> int:
        account_id, _ = await _accounts(registry, args)
        ledger, count = UsageLedger(registry.store), 0
        draft = args.parquet.with_name(f".{args.parquet.name}.part")
        try:
            with draft.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
                async for rows in ledger.export(account_id, args.since, args.until):
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    count += len(rows)
            draft.replace(args.parquet)
        except OSError as error:
            raise ConfigError(f"--parquet {args.parquet}: {error.strerror or error}") from None
        finally:
            draft.unlink(missing_ok=True)
        return count

    print(f"{with_registry(args, write)} records written to {args.parquet}")
    return 0


def _dated(details: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return details with times as people read them."""
    found = details or {}
    times = {name: date(found[name]) for name in ("expires", "until") if found.get(name)}
    return {**found, **times} if times else details


def _audit(args: argparse.Namespace) -> int:
    check_limit(args)

    async def read(admin: Administration) -> list[AuditEntry]:
        account_id = await admin.accounts.id_of(args.account)
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
            "details": entry.details if args.json else json.dumps(_dated(entry.details)),
        }
        for entry in with_administration(args, read)
    ]
    show(rows, args.json)
    return 0
