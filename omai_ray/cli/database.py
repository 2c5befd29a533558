"""`omai-ray db`: the schema of the database."""

from __future__ import annotations

import argparse
import asyncio

from omai_ray.cli.common import Commands, database_command, group, settings_of
from omai_ray.store import Store
from omai_ray.store.store import schema_of
from omai_ray.store.tables import REVISIONS


def add(commands: Commands) -> None:
    """Add the commands."""
    db = group(commands, "db", "look at the database's schema, and bring it up to date")
    database_command(db, "status", "show which schema the database has", _status)
    database_command(db, "upgrade", "bring the database to this version's schema", _upgrade)


def _status(args: argparse.Namespace) -> int:
    found = asyncio.run(schema_of(settings_of(args).sqlalchemy_url))
    print(f"schema {found or 'none yet'}; this omai-ray needs {REVISIONS[-1]}")
    return 0


def _upgrade(args: argparse.Namespace) -> int:
    url = settings_of(args).sqlalchemy_url

    async def upgrade() -> str | None:
        before = await schema_of(url)
        await (await Store.open(url, upgrading=True)).close()
        return before

    before = asyncio.run(upgrade())
    if before == REVISIONS[-1]:
        print(f"schema {before}: nothing to do")
    else:
        print(f"schema {before or 'none'} -> {REVISIONS[-1]}")
    return 0
