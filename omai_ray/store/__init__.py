"""Accounts, users, keys, sessions, files and usage in SQL: SQLite on one node, PostgreSQL on many."""

from __future__ import annotations

from omai_ray.store.records import (
    Account,
    AccountStatus,
    ApiKey,
    AuditEntry,
    File,
    Outcome,
    Purpose,
    Role,
    Session,
    User,
)
from omai_ray.store.store import Store, is_storable

__all__ = [
    "Account",
    "AccountStatus",
    "ApiKey",
    "AuditEntry",
    "File",
    "Outcome",
    "Purpose",
    "Role",
    "Session",
    "Store",
    "User",
    "is_storable",
]
