"""`omai-ray keys`: API keys."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from omai_ray.cli.common import (
    Commands,
    add_change,
    add_count,
    add_json,
    add_models,
    changes,
    check_database,
    database_command,
    date,
    duration_s,
    everything,
    group,
    settings_of,
    show,
    with_administration,
)
from omai_ray.errors import ConfigError, NotFound
from omai_ray.identity.administration import Administration
from omai_ray.identity.peppers import Peppers, add_version
from omai_ray.store import Account, ApiKey

_COLUMNS = (
    "id",
    "name",
    "account",
    "role",
    "status",
    "last_four",
    "last_used",
    "expires",
    "pepper",
)


def add(commands: Commands) -> None:
    """Add the commands."""
    keys = group(commands, "keys", "create, list, change, rotate and revoke API keys")
    create = database_command(keys, "create", "create an API key and show it, this once", _create)
    create.add_argument(
        "--tier",
        help="tier of the new account that the key is for: basic, pro, enterprise, or your own",
    )
    create.add_argument("--account", help="an account's name or id; made if new (with --tier)")
    create.add_argument("--role", choices=["member", "admin"], default="member",
        help="admin: for the administrative API")  # fmt: skip
    create.add_argument("--quiet", action="store_true", help="print the key alone")
    _add_changes(create)
    listing = database_command(keys, "list", "list the API keys, without their secrets", _list)
    listing.add_argument("--account", help="of this account alone, by name or id")
    add_json(listing)
    update = database_command(keys, "update", "change an API key", _update)
    _add_changes(update)
    add_json(update)
    rotate = database_command(
        keys, "rotate", "replace an API key; the old one works for a while yet", _rotate
    )
    rotate.add_argument("--grace", type=duration_s, default="24h", metavar="TIME",
        help="for how long the old key works on (default: 24h)")  # fmt: skip
    rotate.add_argument("--quiet", action="store_true", help="print the new key alone")
    revoke = database_command(keys, "revoke", "revoke an API key, within 5 s everywhere", _revoke)
    for parser in (update, rotate, revoke):
        parser.add_argument("key_id", metavar="ID", help="the key's id, as `keys list` shows it")
    pepper = database_command(
        keys,
        "new-pepper",
        "add a pepper, which new keys, and old ones when they are used, depend on after a while",
        _new_pepper,
    )
    pepper.add_argument("--after", type=duration_s, default="1h", metavar="TIME",
        help="when every node has the new file (default: 1h)")  # fmt: skip


def _add_changes(parser: argparse.ArgumentParser) -> None:
    add_change(parser, "--name", help="a label to tell keys apart")
    add_change(parser, "--expires-in", type=_duration_or_none, metavar="TIME",
        help="such as 12h or 90d from now, or 'none'")  # fmt: skip
    add_count(parser, "--requests-per-minute", "a limit below the account's")
    add_count(parser, "--tokens-per-minute", "a limit below the account's")
    add_models(parser)


def _duration_or_none(text: str) -> float | None:
    return None if text == "none" else duration_s(text)


def _changes(args: argparse.Namespace) -> Any:
    given = changes(args, "name", "requests_per_minute", "tokens_per_minute", "models")
    if hasattr(args, "expires_in"):
        given["expires"] = None if args.expires_in is None else time.time() + args.expires_in
    return given


def _create(args: argparse.Namespace) -> int:
    async def create(admin: Administration) -> tuple[str, str]:
        values = _changes(args)
        admin.keys.check(values)  # before an account is made for it
        account = await _account_for_key(admin, args.account, args.tier)
        _, key = await admin.keys.create(account.id, role=args.role, **values)
        return account.name, key

    account, key = with_administration(args, create, makes=True)
    _show_key(key, args.quiet, f"account  {account}")
    return 0


async def _account_for_key(admin: Administration, name: str | None, tier: str | None) -> Account:
    """Return the named account, or a new one of that tier."""
    if name is not None:
        try:
            account = await admin.accounts.get(name)
        except NotFound as error:
            if tier is None:
                raise ConfigError(f"{error.message} --tier TIER makes it.") from None
        else:
            if tier not in (None, account.tier):
                raise ConfigError(f"account '{name}' is of tier '{account.tier}', not '{tier}'")
            return account
    if tier is None:
        raise ConfigError("keys create: give --tier for a new account, or --account")
    return await admin.accounts.create(name, tier)


def _list(args: argparse.Namespace) -> int:
    async def read(admin: Administration) -> tuple[list[ApiKey], dict[str, Account]]:
        if args.account is not None:
            accounts = [await admin.accounts.get(args.account)]
        else:
            accounts = await everything(admin.accounts.list)
        keys = await everything(lambda after: admin.keys.list(args.account, after=after))
        return keys, {account.id: account for account in accounts}

    keys, owners = with_administration(args, read)
    rows = [_row(key, owners[key.account_id]) for key in keys]
    show(rows if args.json else [_short(row) for row in rows], args.json)
    return 0


def _update(args: argparse.Namespace) -> int:
    async def update(admin: Administration) -> tuple[ApiKey, Account]:
        key = await admin.keys.update(args.key_id, **_changes(args))
        return key, await admin.accounts.get(key.account_id)

    show([_row(*with_administration(args, update))], args.json)
    return 0


def _rotate(args: argparse.Namespace) -> int:
    new, key = with_administration(
        args, lambda admin: admin.keys.rotate(args.key_id, grace_s=args.grace)
    )
    _show_key(key, args.quiet, f"id       {new.id}")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    key = with_administration(args, lambda admin: admin.keys.revoke(args.key_id))
    print(f"revoked {key.id} ({key.name})")
    return 0


def _new_pepper(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    check_database(settings)
    path = settings.pepper_path
    Peppers.load(path)
    from_s = time.time() + args.after
    version = add_version(path, from_s)
    with_administration(args, lambda _: asyncio.sleep(0))  # notes it in the database
    print(
        f"{path} has version {version}, used from {date(from_s)}: copy the file to every node "
        "before. An older version can be removed once `keys list` shows no key of it."
    )
    return 0


def _show_key(key: str, quiet: bool, line: str) -> None:
    if quiet:
        print(key)
    else:
        print(f"{line}\nkey      {key}\n\nKeep it now: it cannot be shown again.")


def _status(key: ApiKey, owner: Account) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires is not None and key.expires <= time.time():
        return "expired"
    return owner.status


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return what tells keys apart, and whether they work; --json has all of it."""
    return {name: row[name] for name in _COLUMNS}


def _row(key: ApiKey, owner: Account) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "account": owner.name,
        "tier": owner.tier,
        "role": key.role,
        "status": _status(key, owner),
        "last_four": key.last_four,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "models": key.models,
        "created": date(key.created),
        "last_used": date(key.last_used),
        "expires": date(key.expires),
        "revoked": date(key.revoked_at),
        "replaced_by": key.replaced_by,
        "pepper": key.pepper_version,
    }
