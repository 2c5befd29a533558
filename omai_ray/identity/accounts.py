"""Accounts, users and keys: what the command line and the administrative API do with them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import Table, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from omai_ray.errors import InvalidRequest, NotFound
from omai_ray.identity import keys
from omai_ray.identity.passwords import Passwords
from omai_ray.identity.peppers import Peppers
from omai_ray.store import Account, AccountStatus, ApiKey, Role, Store, User
from omai_ray.store.tables import accounts, api_keys, sessions, users

NAME_RULE = (
    "1 to 64 letters, digits or . _ @ + -, beginning with a letter or digit (and not with 'acct_')"
)
MIN_PASSWORD = 8
MAX_PASSWORD = 1024
_NAME = re.compile(r"(?!acct_)[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", re.ASCII)
_ACCOUNT_PREFIX = "acct_"
_ROLES = ("owner", "member", "admin")


class Accounts:
    """Creates, finds and changes accounts, users and keys.

    tiers: the names that an account's tier may have. clock: seconds since the epoch. Every method
    raises InvalidRequest for a value that cannot be, NotFound for what is not there, and
    Overloaded where the database is away.
    """

    def __init__(
        self,
        store: Store,
        peppers: Peppers,
        tiers: Collection[str],
        *,
        passwords: Passwords | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._peppers = peppers
        self._tiers = tuple(tiers)
        self._passwords = passwords or Passwords()
        self._clock = clock

    async def create_account(self, name: str | None, tier: str) -> Account:
        """Create an account; one without a name is called by its id."""
        account = self._new_account(name, tier)
        await self._insert(f"account '{account.name}'", (accounts, account))
        return account

    async def get_account(self, reference: str) -> Account:
        """Return the account of that name or id."""
        found = or_(accounts.c.name == reference, accounts.c.id == reference)
        async with self._store.reading() as connection:
            row = (await connection.execute(select(accounts).where(found))).mappings().first()
        if row is None:
            raise NotFound(f"There is no account '{reference}'.")
        return Account.from_row(row)

    async def list_accounts(self) -> list[Account]:
        """Return all accounts by name."""
        async with self._store.reading() as connection:
            rows = (await connection.execute(select(accounts).order_by(accounts.c.name))).mappings()
            return [Account.from_row(row) for row in rows]

    async def set_tier(self, reference: str, tier: str) -> Account:
        """Give an account another tier."""
        self._require_tier(tier)
        return await self._change_account(reference, tier=tier)

    async def set_status(self, reference: str, status: AccountStatus) -> Account:
        """Suspend an account, or make it active again."""
        if status not in ("active", "suspended"):
            raise InvalidRequest(
                f"Invalid 'status': expected 'active' or 'suspended', got '{status}'.",
                param="status",
            )
        return await self._change_account(reference, status=status)

    async def create_key(
        self, account: str, name: str = "default", expires: float | None = None
    ) -> tuple[ApiKey, str]:
        """Create a key for the account of that name or id.

        expires: seconds since the epoch. Returns its record and the key itself, which cannot be
        shown again.
        """
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise InvalidRequest(
                "Invalid 'name': expected 1 to 64 printable characters.", param="name"
            )
        now_s = self._clock()
        if expires is not None and not now_s < expires < float("inf"):
            raise InvalidRequest("Invalid 'expires': it must lie in the future.", param="expires")
        owner = await self.get_account(account)
        parsed, text = keys.generate()
        mac = keys.compute_mac(parsed, self._peppers.current)
        record = ApiKey(
            id=parsed.key_id,
            account_id=owner.id,
            name=name,
            last_four=text[-4:],
            mac=mac,
            pepper_version=self._peppers.version,
            created=now_s,
            last_used=None,
            expires=expires,
            revoked_at=None,
        )
        await self._insert(f"key '{name}'", (api_keys, record))
        return record, text

    async def list_keys(self, account: str | None = None) -> list[ApiKey]:
        """Return the keys of the account of that name or id, or all, oldest first."""
        statement = select(api_keys).order_by(api_keys.c.created, api_keys.c.id)
        if account is not None:
            owner = await self.get_account(account)
            statement = statement.where(api_keys.c.account_id == owner.id)
        async with self._store.reading() as connection:
            rows = (await connection.execute(statement)).mappings()
            return [ApiKey.from_row(row) for row in rows]

    async def revoke_key(self, reference: str, account_id: str | None = None) -> ApiKey:
        """Revoke the key of that id (the whole key does as well); twice changes nothing.

        account_id: whose key it must be; another's is not there. It stops working everywhere
        within the authenticators' cache time.
        """
        parsed = keys.parse(reference)
        key_id = parsed.key_id if parsed else reference
        mine = api_keys.c.id == key_id
        if account_id is not None:
            mine &= api_keys.c.account_id == account_id
        async with self._store.writing() as connection:
            await connection.execute(
                update(api_keys)
                .where(mine, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=self._clock())
            )
            row = (await connection.execute(select(api_keys).where(mine))).mappings().first()
        if row is None:
            raise NotFound(f"There is no key '{keys.redact(reference) or reference}'.")
        return ApiKey.from_row(row)

    async def create_user(self, name: str, password: str, tier: str, role: Role = "owner") -> User:
        """Create a user, and an account of the same name for them."""
        if role not in _ROLES:
            raise InvalidRequest(
                f"Invalid 'role': expected one of {', '.join(_ROLES)}, got '{role}'.", param="role"
            )
        account = self._new_account(_required_name(name), tier)
        password_hash = await self._hash(password)
        user = User(
            id=f"user_{keys.random_text(20)}",
            name=name,
            password_hash=password_hash,
            account_id=account.id,
            role=role,
            created=self._clock(),
        )
        await self._insert(f"user or account '{name}'", (accounts, account), (users, user))
        return user

    async def list_users(self) -> list[User]:
        """Return all users by name."""
        async with self._store.reading() as connection:
            rows = (await connection.execute(select(users).order_by(users.c.name))).mappings()
            return [User.from_row(row) for row in rows]

    async def set_password(self, name: str, password: str) -> None:
        """Change a user's password, which ends their sessions."""
        password_hash = await self._hash(password)
        async with self._store.writing() as connection:
            user_id = await connection.scalar(select(users.c.id).where(users.c.name == name))
            if user_id is None:
                raise NotFound(f"There is no user '{name}'.")
            await connection.execute(
                update(users).where(users.c.id == user_id).values(password_hash=password_hash)
            )
            await connection.execute(delete(sessions).where(sessions.c.user_id == user_id))

    def _new_account(self, name: str | None, tier: str) -> Account:
        self._require_tier(tier)
        account_id = f"{_ACCOUNT_PREFIX}{keys.random_text(20)}"
        name = account_id if name is None else _required_name(name)
        return Account(account_id, name, tier, "active", self._clock())

    def _require_tier(self, tier: str) -> None:
        if tier not in self._tiers:
            known = ", ".join(self._tiers)
            raise InvalidRequest(
                f"Invalid 'tier': there is no tier '{tier}' (there are: {known}).", param="tier"
            )

    async def _hash(self, password: str) -> str:
        if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise InvalidRequest(
                f"Invalid 'password': expected {MIN_PASSWORD} to {MAX_PASSWORD} characters, "
                f"got {len(password)}.",
                param="password",
            )
        return await self._passwords.hash(password)

    async def _change_account(self, reference: str, **values: str) -> Account:
        account = await self.get_account(reference)
        async with self._store.writing() as connection:
            await connection.execute(
                update(accounts).where(accounts.c.id == account.id).values(**values)
            )
        return await self.get_account(account.id)

    async def _insert(self, what: str, *rows: tuple[Table, Any]) -> None:
        """Insert records into their tables, all or none."""
        try:
            async with self._store.writing() as connection:
                for table, record in rows:
                    values = {column.name: getattr(record, column.name) for column in table.c}
                    await connection.execute(insert(table).values(**values))
        except IntegrityError:
            raise InvalidRequest(
                f"The {what} already exists.", param="name", code="already_exists"
            ) from None


def _required_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 80 and name.isprintable() else f"{len(name)} characters"
        raise InvalidRequest(f"Invalid 'name': expected {NAME_RULE}, got '{shown}'.", param="name")
    return name
