"""`omai-ray users`: who may log in."""

from __future__ import annotations

import argparse
from typing import Any

from omai_ray.cli.common import (
    Commands,
    add_json,
    add_password,
    ask_password,
    database_command,
    date,
    everything,
    group,
    show,
    with_administration,
    with_registry,
)
from omai_ray.errors import ConfigError
from omai_ray.identity.administration import Administration
from omai_ray.identity.registry import Registry
from omai_ray.identity.sessions import Sessions
from omai_ray.store import Account, Session, User

_ROLES = ["owner", "member", "admin"]


def add(commands: Commands) -> None:
    """Add the commands."""
    users = group(commands, "users", "create, list and change the users who may log in")
    create = database_command(users, "create", "create a user, who may log in", _create)
    create.add_argument("--tier", help="make an account of the same name, of this tier")
    create.add_argument("--account", help="or let them join this one, by name or id")
    create.add_argument("--role", choices=_ROLES,
        help="default: owner of their own account, member of another")  # fmt: skip
    add_password(create)
    listing = database_command(users, "list", "list the users", _list)
    listing.add_argument("--account", help="of this account alone, by name or id")
    role = database_command(users, "role", "give a user another role", _role)
    password = database_command(
        users, "password", "change a user's password, which ends their sessions", _password
    )
    add_password(password)
    delete = database_command(users, "delete", "delete a user", _delete)
    sessions = database_command(users, "sessions", "list a user's sessions", _sessions)
    logout = database_command(users, "logout", "end a user's sessions", _logout)
    for parser in (create, role, password, delete, sessions, logout):
        parser.add_argument("name", metavar="NAME")
    role.add_argument("role", choices=_ROLES)
    for parser in (listing, sessions):
        add_json(parser)


def _create(args: argparse.Namespace) -> int:
    if (args.tier is None) == (args.account is None):
        raise ConfigError("users create: give --tier for an account of their own, or --account")
    password = ask_password(args, args.name)

    async def create(admin: Administration) -> tuple[User, Account]:
        user = await admin.users.create(
            args.name, password, account=args.account, tier=args.tier, role=args.role
        )
        return user, await admin.accounts.get(user.account_id)

    user, account = with_administration(args, create, makes=True)
    print(f"created user {user.name}, {user.role} of the account {account.name} ({account.tier})")
    return 0


def _list(args: argparse.Namespace) -> int:
    async def read(admin: Administration) -> tuple[list[User], dict[str, Account]]:
        users = await everything(lambda after: admin.users.list(args.account, after))
        accounts = await everything(admin.accounts.list)
        return users, {account.id: account for account in accounts}

    users, accounts = with_administration(args, read)
    rows = [
        {
            "name": user.name,
            "account": accounts[user.account_id].name,
            "role": user.role,
            "created": date(user.created),
        }
        for user in users
    ]
    show(rows, args.json)
    return 0


def _role(args: argparse.Namespace) -> int:
    user = with_administration(args, lambda admin: admin.users.update(args.name, role=args.role))
    print(f"{user.name} is {user.role} now")
    return 0


def _password(args: argparse.Namespace) -> int:
    password = ask_password(args, args.name)
    user = with_administration(args, lambda admin: admin.users.update(args.name, password=password))
    print(f"the password of {user.name} is changed, and their sessions have ended")
    return 0


def _delete(args: argparse.Namespace) -> int:
    user = with_administration(args, lambda admin: admin.users.delete(args.name))
    print(f"deleted user {user.name}")
    return 0


def _sessions(args: argparse.Namespace) -> int:
    async def read(registry: Registry) -> list[Session]:
        user = await Administration(registry).users.get(args.name)
        return await _sessions_of(registry).list(user.id)

    rows: list[dict[str, Any]] = [
        {
            "id": session.id,
            "created": date(session.created),
            "last_used": date(session.last_seen),
            "expires": date(session.expires),
            "source": session.source,
            "user_agent": session.user_agent,
        }
        for session in with_registry(args, read)
    ]
    show(rows, args.json)
    return 0


def _logout(args: argparse.Namespace) -> int:
    async def end(registry: Registry) -> int:
        user = await Administration(registry).users.get(args.name)
        return await _sessions_of(registry).revoke_all(user.id, registry.actor)

    print(f"ended {with_registry(args, end)} sessions of {args.name}")
    return 0


def _sessions_of(registry: Registry) -> Sessions:
    return Sessions(registry.store, registry.audit, registry.clock)
