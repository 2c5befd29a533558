"""Budgets, allow-lists, limits of keys, sessions' sources, the audit log, costs, sums of usage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_APPEND_ONLY_SQLITE = """
CREATE TRIGGER audit_no_{verb} BEFORE {verb} ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
"""
# INSERT OR REPLACE fires no trigger of DELETE.
_NO_REPLACE_SQLITE = """
CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END
"""
_APPEND_ONLY_POSTGRESQL = """
CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$
"""
_TRIGGER_POSTGRESQL = """
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()
"""
_MONTH = {
    "sqlite": "strftime('%Y-%m', started_at, 'unixepoch')",
    "postgresql": "to_char(to_timestamp(started_at) AT TIME ZONE 'UTC', 'YYYY-MM')",
}
_HOUR = {
    "sqlite": "CAST(started_at / 3600 AS INTEGER) * 3600",
    "postgresql": "CAST(floor(started_at / 3600) AS bigint) * 3600",
}


def upgrade() -> None:
    """Add columns and tables; sum up the usage that is there."""
    _extend_accounts()
    _extend_keys()
    op.create_index("ix_users_created", "users", ["created", "id"])
    op.add_column("sessions", sa.Column("source", sa.String(64)))
    op.add_column("sessions", sa.Column("user_agent", sa.String(200)))
    op.create_table(
        "pepper_checks",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("mac", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_pepper_checks"),
    )
    _create_login_failures()
    _create_audit()
    _create_usage_hours()
    _create_usage_months()


def downgrade() -> None:
    """Drop what the upgrade added, and all that it holds."""
    op.drop_table("usage_months")
    op.drop_table("usage_hours")
    op.drop_table("audit")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_append_only()")
    op.drop_table("login_failures")
    op.drop_table("pepper_checks")
    op.drop_index("ix_usage_started_at", "usage")
    op.drop_index("ix_users_created", "users")
    op.drop_index("ix_api_keys_created", "api_keys")
    op.drop_index("ix_accounts_created", "accounts")
    for table, columns in (
        ("usage", ("first_token_ms", "cost")),
        ("sessions", ("source", "user_agent")),
        ("accounts", ("monthly_tokens", "models")),
        (
            "api_keys",
            (
                "role",
                "requests_per_minute",
                "tokens_per_minute",
                "models",
                "created_by",
                "replaced_by",
            ),
        ),
    ):
        for column in columns:
            op.drop_column(table, column)


def _extend_accounts() -> None:
    op.add_column("accounts", sa.Column("monthly_tokens", sa.BigInteger()))
    op.add_column("accounts", sa.Column("models", sa.Text()))
    op.create_index("ix_accounts_created", "accounts", ["created", "id"])


def _extend_keys() -> None:
    op.add_column(
        "api_keys", sa.Column("role", sa.String(16), nullable=False, server_default="member")
    )
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.BigInteger()))
    op.add_column("api_keys", sa.Column("tokens_per_minute", sa.BigInteger()))
    op.add_column("api_keys", sa.Column("models", sa.Text()))
    op.add_column("api_keys", sa.Column("created_by", sa.String(40)))
    op.add_column("api_keys", sa.Column("replaced_by", sa.String(40)))
    op.create_index("ix_api_keys_created", "api_keys", ["created", "id"])


def _create_login_failures() -> None:
    op.create_table(
        "login_failures",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("user_mac", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_login_failures"),
    )
    op.create_index("ix_login_failures_at", "login_failures", ["at"])


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(64), nullable=False),
        sa.Column("actor_name", sa.String(64)),
        sa.Column("action", sa.String(40), nullable=False),
        sa.Column("target", sa.String(64)),
        sa.Column("account_id", sa.String(40)),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("request_id", sa.String(64)),
        sa.Column("source", sa.String(64)),
        sa.Column("details", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    for column in ("account_id", "actor", "action", "target"):
        op.create_index(f"ix_audit_{column}", "audit", [column, "id"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_APPEND_ONLY_POSTGRESQL)
        op.execute(_TRIGGER_POSTGRESQL)
    else:
        for verb in ("UPDATE", "DELETE"):
            op.execute(_APPEND_ONLY_SQLITE.format(verb=verb))
        op.execute(_NO_REPLACE_SQLITE)


def _create_usage_hours() -> None:
    op.add_column("usage", sa.Column("first_token_ms", sa.BigInteger()))
    op.add_column("usage", sa.Column("cost", sa.Double()))
    op.create_index("ix_usage_started_at", "usage", ["started_at", "request_id"])
    op.create_table(
        "usage_hours",
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("key_id", sa.String(40), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "hour", "model", "key_id", name="pk_usage_hours"),
    )
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])
    hour = _HOUR[op.get_bind().dialect.name]
    op.execute(
        "INSERT INTO usage_hours (account_id, hour, model, key_id, requests, "  # noqa: S608
        "prompt_tokens, completion_tokens, cached_tokens, cost) "
        f"SELECT account_id, {hour}, model, coalesce(key_id, ''), count(*), sum(prompt_tokens), "
        "sum(completion_tokens), sum(cached_tokens), 0 FROM usage GROUP BY 1, 2, 3, 4"
    )


def _create_usage_months() -> None:
    op.create_table(
        "usage_months",
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("month", sa.String(7), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "month", name="pk_usage_months"),
    )
    month = _MONTH[op.get_bind().dialect.name]
    op.execute(
        "INSERT INTO usage_months (account_id, month, requests, tokens) "  # noqa: S608 - constants
        f"SELECT account_id, {month}, count(*), sum(prompt_tokens + completion_tokens) "
        "FROM usage GROUP BY 1, 2"
    )
