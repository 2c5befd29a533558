"""Accounts, users, keys, sessions, files, batches, jobs and usage in SQL: SQLite or PostgreSQL."""

from __future__ import annotations

from omai_ray.store.records import (
    Account,
    AccountStatus,
    ApiKey,
    AuditEntry,
    Batch,
    BatchOutcome,
    BatchStatus,
    BatchUnit,
    EmbeddingJob,
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
    "Batch",
    "BatchOutcome",
    "BatchStatus",
    "BatchUnit",
    "EmbeddingJob",
    "File",
    "Outcome",
    "Purpose",
    "Role",
    "Session",
    "Store",
    "User",
    "is_storable",
]
