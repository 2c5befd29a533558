"""Rows as the rest of the platform sees them. Times are seconds since the epoch, UTC."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self

from sqlalchemy import RowMapping

AccountStatus = Literal["active", "suspended"]
Role = Literal["owner", "member", "admin"]


@dataclass(frozen=True, slots=True)
class _Record:
    @classmethod
    def from_row(cls, row: RowMapping, prefix: str = "") -> Self:
        """Pick this record's columns, named `prefix` + field, out of a row's mapping."""
        return cls(**{field.name: row[prefix + field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Account(_Record):
    """Who pays: keys and users belong to it, and share its limits."""

    id: str
    name: str
    tier: str
    status: AccountStatus
    created: float


@dataclass(frozen=True, slots=True)
class User(_Record):
    """Someone who can log in. password_hash: argon2id, in PHC form."""

    id: str
    name: str
    password_hash: str
    account_id: str
    role: Role
    created: float

    def __repr__(self) -> str:
        return f"User(id={self.id!r}, name={self.name!r}, role={self.role!r})"


@dataclass(frozen=True, slots=True)
class ApiKey(_Record):
    """What is known of a key; its secret is not. mac: hex, under the pepper of that version."""

    id: str
    account_id: str
    name: str
    last_four: str
    mac: str
    pepper_version: int
    created: float
    last_used: float | None
    expires: float | None
    revoked_at: float | None

    def __repr__(self) -> str:
        return f"ApiKey(id={self.id!r}, name={self.name!r}, last_four={self.last_four!r})"


@dataclass(frozen=True, slots=True)
class Session(_Record):
    """A login. id: SHA-256 of what the cookie holds. expires: the absolute end."""

    id: str
    user_id: str
    created: float
    last_seen: float
    expires: float
