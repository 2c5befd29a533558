"""What accounts, users and keys are kept with, and the transactions that keep them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy import Table, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import InvalidRequest
from omai_ray.identity.actor import SYSTEM, Actor
from omai_ray.identity.audit import AuditLog
from omai_ray.identity.passwords import Passwords
from omai_ray.identity.peppers import Peppers
from omai_ray.settings import Settings
from omai_ray.store import Account, ApiKey, Store, User


@dataclass(frozen=True)
class Registry:
    """One database of accounts, as one actor changes it.

    audit: keeps what is done. tiers: the names that an account's tier may have. models: gives those
    that allow-lists may have. clock: seconds since the epoch.
    """

    store: Store
    audit: AuditLog
    peppers: Peppers
    tiers: tuple[str, ...]
    models: Callable[[], Collection[str]]
    passwords: Passwords = field(default_factory=Passwords)
    clock: Callable[[], float] = time.time
    actor: Actor = SYSTEM

    @classmethod
    async def open(
        cls,
        settings: Settings,
        actor: Actor = SYSTEM,
        models: Callable[[], Collection[str]] | None = None,
    ) -> Registry:
        """Return the registry of these settings. Raises ConfigError, Overloaded.

        models: where they may change; by default those of the settings.
        """
        peppers = await asyncio.to_thread(Peppers.load, settings.pepper_path)
        store = await Store.open(settings.sqlalchemy_url)
        try:
            await peppers.check(store)
        except BaseException:
            await store.close()
            raise
        return cls(
            store,
            AuditLog(store, time.time),
            peppers,
            tuple(settings.tiers),
            models or (lambda: settings.catalog.names),
            actor=actor,
        )

    async def close(self) -> None:
        """Write what was noted, and close the database."""
        await self.audit.close()
        self.passwords.close()
        await self.store.close()

    @asynccontextmanager
    async def changing(self, what: str) -> AsyncIterator[Change]:
        """Give a transaction; raise InvalidRequest where it would make a second `what`."""
        try:
            async with self.store.writing() as connection:
                yield Change(connection, self.audit, self.actor)
        except IntegrityError:
            raise InvalidRequest(
                f"The {what} already exists.", param="name", code="already_exists"
            ) from None


@dataclass(frozen=True)
class Change:
    """A transaction under way, in which changes and their audit entries are made."""

    connection: AsyncConnection
    _audit: AuditLog
    _actor: Actor

    async def insert(self, table: Table, record: Account | ApiKey | User) -> None:
        """Insert a record."""
        await self.connection.execute(insert(table).values(**record.row()))

    async def note(
        self, action: str, target: str, account_id: str | None, **details: object
    ) -> None:
        """Enter what is done into the audit log."""
        entry = self._audit.entry(self._actor, action, target, account_id, details=details)
        await self._audit.write(self.connection, entry)
