"""`omai-ray accounts`: who pays, and what they may use."""

from __future__ import annotations

import argparse
import time
from typing import Any

from omai_ray.cli.common import (
    Commands,
    add_change,
    add_count,
    add_json,
    add_models,
    changes,
    database_command,
    date,
    everything,
    group,
    show,
    with_administration,
    with_registry,
)
from omai_ray.identity.administration import Administration
from omai_ray.identity.registry import Registry
from omai_ray.ledger import UsageLedger
from omai_ray.ledger.ledger import month_of
from omai_ray.store import Account


def add(commands: Commands) -> None:
    """Add the commands."""
    accounts = group(commands, "accounts", "create, list and change accounts")
    create = database_command(accounts, "create", "create an account", _create)
    create.add_argument("name", metavar="NAME")
    create.add_argument("--tier", required=True, help="basic, pro, enterprise, or your own")
    _add_budget(create)
    listing = database_command(accounts, "list", "list the accounts", _list)
    show_one = database_command(accounts, "show", "show an account", _show)
    show_one.add_argument("account", metavar="ACCOUNT", help="name or id")
    update = database_command(accounts, "update", "change an account", _update)
    update.add_argument("account", metavar="ACCOUNT", help="name or id")
    add_change(update, "--name", help="its new name")
    add_change(update, "--tier", help="its new tier")
    add_change(update, "--status", choices=["active", "suspended"],
        help="a suspended account's keys and users are refused")  # fmt: skip
    _add_budget(update)
    for parser in (create, listing, show_one, update):
        add_json(parser)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    add_count(parser, "--monthly-tokens", "budget of a calendar month (UTC)")
    add_models(parser)


def _create(args: argparse.Namespace) -> int:
    limits = changes(args, "monthly_tokens", "models")
    account = with_administration(
        args, lambda admin: admin.accounts.create(args.name, args.tier, **limits), makes=True
    )
    show([_row(account)], args.json)
    return 0


def _list(args: argparse.Namespace) -> int:
    async def read(admin: Administration) -> list[Account]:
        return await everything(admin.accounts.list)

    show([_row(account) for account in with_administration(args, read)], args.json)
    return 0


def _show(args: argparse.Namespace) -> int:
    async def read(registry: Registry) -> dict[str, Any]:
        account = await Administration(registry).accounts.get(args.account)
        month = month_of(time.time())
        used = await UsageLedger(registry.store).tokens_in_month(account.id, month)
        return {**_row(account), "tokens_this_month": used}

    show([with_registry(args, read)], args.json)
    return 0


def _update(args: argparse.Namespace) -> int:
    given = changes(args, "name", "tier", "status", "monthly_tokens", "models")
    account = with_administration(args, lambda admin: admin.accounts.update(args.account, **given))
    show([_row(account)], args.json)
    return 0


def _row(account: Account) -> dict[str, Any]:
    return {
        "name": account.name,
        "id": account.id,
        "tier": account.tier,
        "status": account.status,
        "monthly_tokens": account.monthly_tokens,
        "models": account.models,
        "created": date(account.created),
    }
