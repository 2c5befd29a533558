"""Accounts: who pays, and what they may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, Unpack

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import NotFound
from omai_ray.identity import checks
from omai_ray.identity.administrators import keep_an_administrator
from omai_ray.identity.keys import random_text
from omai_ray.identity.paging import MAX_PAGE, Page, read_page
from omai_ray.identity.registry import Registry
from omai_ray.store import Account, AccountStatus, is_storable
from omai_ray.store.tables import accounts

_PREFIX = "acct_"


class AccountLimits(TypedDict, total=False):
    """monthly_tokens: for a calendar month (UTC), None without bound. models: None for all."""

    monthly_tokens: int | None
    models: Sequence[str] | None


class AccountChanges(AccountLimits, total=False):
    """What may be changed; what is left out stays."""

    name: str
    tier: str
    status: AccountStatus


class Accounts:
    """Creates, finds and changes accounts.

    Every method raises InvalidRequest for a value that cannot be, NotFound for what is not there,
    and Overloaded where the database is away.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def create(self, name: str | None, tier: str, **limits: Unpack[AccountLimits]) -> Account:
        """Create an account; one without a name is called by its id."""
        account = new_account(self._registry, name, tier, **limits)
        async with self._registry.changing(f"account '{account.name}'") as change:
            await change.insert(accounts, account)
            await change.note(
                "account.create", account.id, account.id, name=account.name, tier=tier, **limits
            )
        return account

    async def get(self, reference: str) -> Account:
        """Return the account of that name or id."""
        async with self._registry.store.reading() as connection:
            return await find_account(connection, reference)

    async def id_of(self, reference: str | None) -> str | None:
        """Return the id of the account of that name or id; None for None, which is all accounts."""
        return None if reference is None else (await self.get(reference)).id

    async def list(self, after: str | None = None, limit: int = MAX_PAGE) -> Page[Account]:
        """Return accounts, oldest first. after: the id of the last one seen."""
        async with self._registry.store.reading() as connection:
            rows = await read_page(connection, accounts, select(accounts), after, limit)
        return Page.of([Account.from_row(row) for row in rows], limit)

    async def update(self, reference: str, **changes: Unpack[AccountChanges]) -> Account:
        """Change an account; return it as it is then."""
        values = _checked(self._registry, changes)
        what = f"account '{changes.get('name')}'"
        async with self._registry.changing(what) as change:
            account = await find_account(change.connection, reference, locking=True)
            if values.get("status") == "suspended":
                await keep_an_administrator(change.connection, accounts.c.id == account.id)
            if values:
                of_account = accounts.c.id == account.id
                await change.connection.execute(update(accounts).where(of_account).values(**values))
                await change.note("account.update", account.id, account.id, **values)
            return await find_account(change.connection, account.id)


async def find_account(
    connection: AsyncConnection, reference: str, *, locking: bool = False
) -> Account:
    """Return the account of that name or id; raise NotFound.

    locking: keep it from others' changes until the transaction ends.
    """
    statement = select(accounts).where(
        or_(accounts.c.name == reference, accounts.c.id == reference)
    )
    row = None
    if is_storable(reference):
        found = await connection.execute(statement.with_for_update() if locking else statement)
        row = found.mappings().first()
    if row is None:
        raise NotFound(f"There is no account '{checks.shown(reference)}'.")
    return Account.from_row(row)


def new_account(
    registry: Registry, name: str | None, tier: str, **limits: Unpack[AccountLimits]
) -> Account:
    """Return an account that is not in the database yet. Raises InvalidRequest."""
    checks.check_tier(tier, registry.tiers)
    account_id = f"{_PREFIX}{random_text(20)}"
    return Account(
        id=account_id,
        name=account_id if name is None else checks.check_name(name),
        tier=tier,
        status="active",
        monthly_tokens=checks.check_count("monthly_tokens", limits.get("monthly_tokens")),
        models=checks.check_models(limits.get("models"), registry.models()),
        created=registry.clock(),
    )


def _checked(registry: Registry, changes: AccountChanges) -> dict[str, object]:
    values: dict[str, object] = dict(changes)
    if "name" in changes:
        checks.check_name(changes["name"])
    if "tier" in changes:
        checks.check_tier(changes["tier"], registry.tiers)
    if "status" in changes:
        checks.check_status(changes["status"])
    if "monthly_tokens" in changes:
        checks.check_count("monthly_tokens", changes["monthly_tokens"])
    if "models" in changes:
        values["models"] = checks.check_models(changes["models"], registry.models())
    return values
