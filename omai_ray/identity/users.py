"""Users: who may log in, for which account, and in what role."""

from __future__ import annotations

from typing import TypedDict, Unpack

from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from omai_ray.errors import InvalidRequest, NotFound
from omai_ray.identity import checks
from omai_ray.identity.accounts import find_account, new_account
from omai_ray.identity.administrators import has_administrator, keep_an_administrator
from omai_ray.identity.api_keys import revoke_administrators_keys
from omai_ray.identity.credentials import unauthorized
from omai_ray.identity.keys import random_text
from omai_ray.identity.paging import MAX_PAGE, Page, read_page
from omai_ray.identity.registry import Change, Registry
from omai_ray.store import Role, User, is_storable
from omai_ray.store.tables import accounts, sessions, users

_PREFIX = "user_"


class UserChanges(TypedDict, total=False):
    """What may be changed; what is left out stays."""

    role: Role
    password: str


class Users:
    """Creates, finds, changes and removes users. Errors as those of Accounts."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def create(
        self,
        name: str,
        password: str,
        *,
        account: str | None = None,
        tier: str | None = None,
        role: Role | None = None,
    ) -> User:
        """Create a user of the account of that name or id (a member, unless role says otherwise).

        With a tier in place of an account they get one of their own, of the same name, and own it.
        """
        checks.check_name(name)
        role = role or ("owner" if account is None else "member")
        checks.check_role(role)
        if (account is None) == (tier is None):
            raise InvalidRequest(
                "Give either 'account', an existing one, or 'tier', for a new one.",
                param="account",
            )
        own = new_account(self._registry, name, tier) if tier is not None else None
        password_hash = await self._registry.passwords.hash(checks.check_password(password))
        what = f"user '{name}'" if own is None else f"user or account '{name}'"
        async with self._registry.changing(what) as change:
            if own is not None:
                await change.insert(accounts, own)
                await change.note("account.create", own.id, own.id, name=name, tier=own.tier)
            joined = own or await find_account(change.connection, account or "")
            user = User(
                id=f"{_PREFIX}{random_text(20)}",
                name=name,
                password_hash=password_hash,
                account_id=joined.id,
                role=role,
                created=self._registry.clock(),
            )
            await change.insert(users, user)
            await change.note("user.create", user.id, joined.id, name=name, role=role)
        return user

    async def get(self, reference: str) -> User:
        """Return the user of that name or id."""
        async with self._registry.store.reading() as connection:
            return await _find(connection, reference)

    async def list(
        self, account: str | None = None, after: str | None = None, limit: int = MAX_PAGE
    ) -> Page[User]:
        """Return users, oldest first: all, or those of the account of that name or id."""
        statement = select(users)
        async with self._registry.store.reading() as connection:
            if account is not None:
                owner = await find_account(connection, account)
                statement = statement.where(users.c.account_id == owner.id)
            rows = await read_page(connection, users, statement, after, limit)
        return Page.of([User.from_row(row) for row in rows], limit)

    async def update(
        self, reference: str, *, verified: str | None = None, **changes: Unpack[UserChanges]
    ) -> User:
        """Change a user's role or password; a new password ends their sessions.

        verified: the hash that a password was verified against; raises Unauthorized where it is
        no longer the user's. Who may no longer administer loses the keys made for that.
        """
        values: dict[str, str] = {}
        if "role" in changes:
            checks.check_role(changes["role"])
            values["role"] = changes["role"]
        if "password" in changes:
            password = checks.check_password(changes["password"])
            values["password_hash"] = await self._registry.passwords.hash(password)
        async with self._registry.changing("user") as change:
            user = await _find(change.connection, reference, locking=True)
            if verified is not None and user.password_hash != verified:
                raise unauthorized("Incorrect username or password.")
            if user.role == "admin" and values.get("role", "admin") != "admin":
                await self._end_administration(change, user)
            if values:
                of_user = users.c.id == user.id
                await change.connection.execute(update(users).where(of_user).values(**values))
            if "role" in changes:
                await change.note("user.update", user.id, user.account_id, role=changes["role"])
            if "password" in changes:
                await _end_sessions(change, user)
                await change.note("user.password", user.id, user.account_id)
            return await _find(change.connection, user.id)

    async def delete(self, reference: str) -> User:
        """Remove a user and their sessions. Keys that they made belong to the account, and stay."""
        async with self._registry.changing("user") as change:
            user = await _find(change.connection, reference, locking=True)
            if user.role == "admin":
                await self._end_administration(change, user)
            await _end_sessions(change, user)
            await change.connection.execute(delete(users).where(users.c.id == user.id))
            await change.note("user.delete", user.id, user.account_id, name=user.name)
        return user

    async def has_administrator(self) -> bool:
        """Whether anybody may administer."""
        async with self._registry.store.reading() as connection:
            return await has_administrator(connection)

    async def _end_administration(self, change: Change, user: User) -> None:
        await keep_an_administrator(change.connection, users.c.id == user.id)
        await revoke_administrators_keys(change, user.id, self._registry.clock())


async def _find(connection: AsyncConnection, reference: str, *, locking: bool = False) -> User:
    statement = select(users).where(or_(users.c.name == reference, users.c.id == reference))
    row = None
    if is_storable(reference):
        found = await connection.execute(statement.with_for_update() if locking else statement)
        row = found.mappings().first()
    if row is None:
        raise NotFound(f"There is no user '{checks.shown(reference)}'.")
    return User.from_row(row)


async def _end_sessions(change: Change, user: User) -> None:
    await change.connection.execute(delete(sessions).where(sessions.c.user_id == user.id))
