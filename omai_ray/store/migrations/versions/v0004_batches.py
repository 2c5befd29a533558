"""Batches and their units of work; of which batch a usage record is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the tables and the column."""
    op.add_column("usage", sa.Column("batch_id", sa.String(40)))
    _create_batches()
    op.create_table(
        "batch_units",
        sa.Column("batch_id", sa.String(40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("first_line", sa.Integer(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("part", sa.String(64)),
        sa.Column("output_bytes", sa.BigInteger()),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name="fk_batch_units_batch_id"),
        sa.PrimaryKeyConstraint("batch_id", "number", name="pk_batch_units"),
    )


def downgrade() -> None:
    """Drop them; what batches left in files stays."""
    op.drop_table("batch_units")
    op.drop_table("batches")
    op.drop_column("usage", "batch_id")


def _create_batches() -> None:
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
    op.create_table(
        "batches",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("key_id", sa.String(40)),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("completion_window", sa.String(8), nullable=False),
        sa.Column("input_file_id", sa.String(40), nullable=False),
        sa.Column("metadata", sa.Text()),
        sa.Column("output_expires_s", sa.Integer()),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("model", sa.String(255)),
        sa.Column("errors", sa.Text()),
        sa.Column("output_file_id", sa.String(40)),
        sa.Column("error_file_id", sa.String(40)),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        *(sa.Column(f"{time}_at", sa.Double()) for time in (*times, "cancelled")),
        *(
            sa.Column(count, sa.Integer(), nullable=False, server_default="0")
            for count in ("total", "completed", "failed")
        ),
        *(
            sa.Column(f"{kind}_tokens", sa.BigInteger(), nullable=False, server_default="0")
            for kind in ("enqueued", "prompt", "completion", "cached")
        ),
        sa.Column("holder", sa.String(40)),
        sa.Column("held_until", sa.Double()),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name="fk_batches_account_id"),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )
    op.create_index("ix_batches_account_id", "batches", ["account_id", "id"])
    op.create_index("ix_batches_status", "batches", ["status", "created"])
