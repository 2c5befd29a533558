"""Finding whom credentials belong to: one query each."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Label, Table, select

from omai_ray.store import Account, ApiKey, Session, Store, User
from omai_ray.store.tables import accounts, api_keys, sessions, users


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key with its account."""

    key: ApiKey
    account: Account


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
    """Reads entries from the store. Every method raises Overloaded where the database is away."""

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
        return KeyEntry(ApiKey.from_row(row, "api_keys_"), Account.from_row(row, "accounts_"))

    async def user(self, name: str) -> UserEntry | None:
        """Return the user of that name."""
        statement = (
            select(*_labelled(users), *_labelled(accounts))
            .join_from(users, accounts)
            .where(users.c.name == name)
        )
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


def _labelled(table: Table) -> list[Label[object]]:
    columns: list[ColumnElement[object]] = list(table.c)
    return [column.label(f"{table.name}_{column.key}") for column in columns]
