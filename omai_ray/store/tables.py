"""The schema: the same on SQLite and PostgreSQL.

Every time is seconds since the epoch, UTC: both databases order and compare doubles alike, whereas
SQLite forgets a datetime's zone.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)

REVISIONS = ("0001",)
"""Every migration, oldest first; a database at the last one needs no alembic."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("tier", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created", Double, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("password_hash", String(255), nullable=False),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("created", Double, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    Column("last_four", String(4), nullable=False),
    Column("mac", String(64), nullable=False),
    Column("pepper_version", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("last_used", Double),
    Column("expires", Double),
    Column("revoked_at", Double),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column(
        "user_id",
        String(40),
        ForeignKey("users.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("created", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    Column("expires", Double, nullable=False, index=True),
)

# No foreign keys: a usage record is money, and outlives the account and the key it names.
usage = Table(
    "usage",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("account_id", String(40), nullable=False),
    Column("key_id", String(40)),
    Column("model", String(255), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("finish_reason", String(32)),
    Index("ix_usage_account_id_started_at", "account_id", "started_at"),
)
