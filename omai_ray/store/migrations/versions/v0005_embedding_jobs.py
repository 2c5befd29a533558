"""Embedding jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add their table."""
    times = ("in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled")
    op.create_table(
        "embedding_jobs",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("key_id", sa.String(40)),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("input_file_id", sa.String(40)),
        sa.Column("input", sa.Text()),
        sa.Column("output", sa.Text()),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text()),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("output_file_id", sa.String(40)),
        sa.Column("error_file_id", sa.String(40)),
        sa.Column("created", sa.Double(), nullable=False),
        *(sa.Column(f"{time}_at", sa.Double()) for time in times),
        *(
            sa.Column(count, sa.BigInteger(), nullable=False, server_default="0")
            for count in ("total", "completed", "failed", "tokens", "enqueued_tokens")
        ),
        sa.Column("holder", sa.String(40)),
        sa.Column("held_until", sa.Double()),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_embedding_jobs_account_id"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_embedding_jobs"),
    )
    op.create_index("ix_embedding_jobs_account_id", "embedding_jobs", ["account_id", "id"])
    op.create_index("ix_embedding_jobs_status", "embedding_jobs", ["status", "created"])


def downgrade() -> None:
    """Drop it; what jobs left in files and locations stays."""
    op.drop_table("embedding_jobs")
