"""Finding whom credentials belong to, one query each, and renewing how they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Label, Table, select, update

from omai_ray.identity.principal import Principal, require_active
from omai_ray.store import Account, ApiKey, Session, Store, User, is_storable
from omai_ray.store.tables import accounts, api_keys, sessions, users


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key with its account, and the principal that it makes."""

    key: ApiKey
    account: Account
    principal: Principal


@dataclass(frozen=True, slots=True)
class UserEntry:
    """A user with their account."""

    user: User
    account: Account


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """A session with its user and their account."""

    session: Session
    user: User
    account: Account


class Directory:
    """Reads entries from the store, and renews them.

    Every method raises Overloaded where the database is away.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def key(self, key_id: str) -> KeyEntry | None:
        """Return the key of that id, revoked and expired ones too."""
        statement = (
            select(*_labelled(api_keys), *_labelled(accounts))
            .join_from(api_keys, accounts)
            .where(api_keys.c.id == key_id)
        )
        async with self._store.reading() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        if row is None:
            return None
        key, account = ApiKey.from_row(row, "api_keys_"), Account.from_row(row, "accounts_")
        return KeyEntry(key, account, Principal.of_key(account, key))

    async def owner(self, account_id: str, key_id: str | None) -> Principal:
        """Return for whom work is done that an account, with a key or without, has asked for.

        The key's limits of a minute are left out. Raises PermissionDenied where the account is
        suspended.
        """
        async with self._store.reading() as connection:
            found = await connection.execute(select(accounts).where(accounts.c.id == account_id))
            account = Account.from_row(found.mappings().one())
        require_active(account)
        entry = await self.key(key_id) if key_id is not None else None
        return Principal.of_owner(account, entry.key if entry is not None else None)

    async def user(self, name: str) -> UserEntry | None:
        """Return the user of that name."""
        statement = (
            select(*_labelled(users), *_labelled(accounts))
            .join_from(users, accounts)
            .where(users.c.name == name)
        )
        if not is_storable(name):
            return None
        async with self._store.reading() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        if row is None:
            return None
        return UserEntry(User.from_row(row, "users_"), Account.from_row(row, "accounts_"))

    async def session(self, session_id: str) -> SessionEntry | None:
        """Return the session of that hashed id, expired ones too."""
        statement = (
            select(*_labelled(sessions), *_labelled(users), *_labelled(accounts))
            .join_from(sessions, users)
            .join(accounts, users.c.account_id == accounts.c.id)
            .where(sessions.c.id == session_id)
        )
        async with self._store.reading() as connection:
            row = (await connection.execute(statement)).mappings().one_or_none()
        if row is None:
            return None
        return SessionEntry(
            Session.from_row(row, "sessions_"),
            User.from_row(row, "users_"),
            Account.from_row(row, "accounts_"),
        )

    async def replace_mac(self, key: ApiKey, mac: str, pepper_version: int) -> None:
        """Store a key's MAC under another pepper, unless it has changed meanwhile."""
        statement = (
            update(api_keys)
            .where(api_keys.c.id == key.id, api_keys.c.mac == key.mac)
            .values(mac=mac, pepper_version=pepper_version)
        )
        async with self._store.writing() as connection:
            await connection.execute(statement)

    async def replace_password_hash(self, user_id: str, old: str, new: str) -> None:
        """Store a password's hash with other parameters, unless it has changed meanwhile."""
        statement = (
            update(users)
            .where(users.c.id == user_id, users.c.password_hash == old)
            .values(password_hash=new)
        )
        async with self._store.writing() as connection:
            await connection.execute(statement)


def _labelled(table: Table) -> list[Label[object]]:
    columns: list[ColumnElement[object]] = list(table.c)
    return [column.label(f"{table.name}_{column.key}") for column in columns]
