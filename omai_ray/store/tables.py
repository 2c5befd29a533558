"""The schema: the same on SQLite and PostgreSQL.

Every time is seconds since the epoch, UTC: both databases order and compare doubles alike, whereas
SQLite forgets a datetime's zone.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""Every migration, oldest first; a database at the last one needs no alembic."""


class Json(TypeDecorator[Any]):
    """A value kept as JSON text; NULL is None."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Return what is stored."""
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Return what was stored."""
        return None if value is None else json.loads(value)


class Names(Json):
    """A tuple of names, or NULL for any."""

    cache_ok = True

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        """Return what was stored."""
        return None if value is None else tuple(json.loads(value))


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
    Column("monthly_tokens", BigInteger),
    Column("models", Names),
    Column("created", Double, nullable=False),
    Index("ix_accounts_created", "created", "id"),
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
    Index("ix_users_created", "created", "id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False, server_default="member"),
    Column("last_four", String(4), nullable=False),
    Column("mac", String(64), nullable=False),
    Column("pepper_version", Integer, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("models", Names),
    Column("created", Double, nullable=False),
    Column("created_by", String(40)),
    Column("last_used", Double),
    Column("expires", Double),
    Column("revoked_at", Double),
    Column("replaced_by", String(40)),
    Index("ix_api_keys_created", "created", "id"),
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
    Column("source", String(64)),
    Column("user_agent", String(200)),
)

# Tells whether a pepper file is the one that this database's keys were made with.
pepper_checks = Table(
    "pepper_checks",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("mac", String(64), nullable=False),
)

# What the throttle counts, of the last minute alone. user_mac: a name that was typed may be a
# password by mistake.
login_failures = Table(
    "login_failures",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("at", Double, nullable=False, index=True),
    Column("source", String(64), nullable=False),
    Column("user_mac", String(64), nullable=False),
)

# Append-only: triggers refuse what would change or remove a row. No foreign keys, as in usage.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", Double, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("actor_name", String(64)),
    Column("action", String(40), nullable=False),
    Column("target", String(64)),
    Column("account_id", String(40)),
    Column("outcome", String(16), nullable=False),
    Column("request_id", String(64)),
    Column("source", String(64)),
    Column("details", Json),
    Index("ix_audit_account_id", "account_id", "id"),
    Index("ix_audit_actor", "actor", "id"),
    Index("ix_audit_action", "action", "id"),
    Index("ix_audit_target", "target", "id"),
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
    Column("first_token_ms", BigInteger),
    Column("finish_reason", String(32)),
    Column("cost", Double),
    Column("batch_id", String(40)),
    Index("ix_usage_account_id_started_at", "account_id", "started_at"),
    Index("ix_usage_started_at", "started_at", "request_id"),
)

# Sums of `usage`, kept by the same transactions. hour: when it began, seconds since the epoch;
# key_id: empty where there was none. month: `2026-11`, UTC.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("account_id", String(40), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("model", String(255), primary_key=True),
    Column("key_id", String(40), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cost", Double, nullable=False),
    Index("ix_usage_hours_hour", "hour"),
)

usage_months = Table(
    "usage_months",
    metadata,
    Column("account_id", String(40), primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
)

# What is uploaded, and what batches leave; its content is kept elsewhere, under the id. in_use: by
# how many batches and jobs that have not ended, until when it can neither be deleted nor expire.
files = Table(
    "files",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("in_use", Integer, nullable=False, server_default="0"),
    Index("ix_files_account_id", "account_id", "id"),
    Index("ix_files_expires", "expires"),
)

# outcome: how it will have ended, once nothing more is answered. holder: the process that drives
# it, until held_until.
batches = Table(
    "batches",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("key_id", String(40)),
    Column("endpoint", String(64), nullable=False),
    Column("completion_window", String(8), nullable=False),
    Column("input_file_id", String(40), nullable=False),
    Column("metadata", Json),
    Column("output_expires_s", Integer),
    Column("status", String(16), nullable=False),
    Column("outcome", String(16)),
    Column("model", String(255)),
    Column("errors", Json),
    Column("output_file_id", String(40)),
    Column("error_file_id", String(40)),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("in_progress_at", Double),
    Column("finalizing_at", Double),
    Column("completed_at", Double),
    Column("failed_at", Double),
    Column("expired_at", Double),
    Column("cancelling_at", Double),
    Column("cancelled_at", Double),
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("enqueued_tokens", BigInteger, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("holder", String(40)),
    Column("held_until", Double),
    Index("ix_batches_account_id", "account_id", "id"),
    Index("ix_batches_status", "status", "created"),
)

# Lines of an input that are answered together. part: the object that has their answers, of which
# the first output_bytes are for the output file and the rest for the error file; NULL until then.
batch_units = Table(
    "batch_units",
    metadata,
    Column("batch_id", String(40), ForeignKey("batches.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, nullable=False),
    Column("length", BigInteger, nullable=False),
    Column("first_line", Integer, nullable=False),
    Column("lines", Integer, nullable=False),
    Column("part", String(64)),
    Column("output_bytes", BigInteger),
)

# Parquet files that are embedded as one. task: what else it says. holder: as above.
embedding_jobs = Table(
    "embedding_jobs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("key_id", String(40)),
    Column("model", String(255), nullable=False),
    Column("input_file_id", String(40)),
    Column("input", Text),
    Column("output", Text),
    Column("task", Json, nullable=False),
    Column("metadata", Json),
    Column("status", String(16), nullable=False),
    Column("error", Json),
    Column("output_file_id", String(40)),
    Column("error_file_id", String(40)),
    Column("created", Double, nullable=False),
    Column("in_progress_at", Double),
    Column("finalizing_at", Double),
    Column("completed_at", Double),
    Column("failed_at", Double),
    Column("cancelling_at", Double),
    Column("cancelled_at", Double),
    Column("total", BigInteger, nullable=False, server_default="0"),
    Column("completed", BigInteger, nullable=False, server_default="0"),
    Column("failed", BigInteger, nullable=False, server_default="0"),
    Column("tokens", BigInteger, nullable=False, server_default="0"),
    Column("enqueued_tokens", BigInteger, nullable=False, server_default="0"),
    Column("holder", String(40)),
    Column("held_until", Double),
    Index("ix_embedding_jobs_account_id", "account_id", "id"),
    Index("ix_embedding_jobs_status", "status", "created"),
)
