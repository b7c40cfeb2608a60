"""Counters for monitoring, since when a job could run, an index of live jobs, and a GPU's load.

Counting begins here. Of a job that is queued nobody knows since when; it counts from its creation.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

IS_LIVE = sa.text("jobs.state IN ('waiting', 'queued', 'running')")
# As it was here: the application's own may change.
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tallies",
        sa.Column("metric", sa.String(length=60), nullable=False),
        sa.Column("labels", sa.String(length=200), nullable=False),
        sa.Column("le", sa.String(length=20), nullable=False),
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("metric", "labels", "le", "shard", name=op.f("pk_tallies")),
    )
    op.add_column("jobs", sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE jobs SET queued_at = created_at WHERE state = 'queued'")
    op.create_index(
        "ix_jobs_live",
        "jobs",
        ["state", "queue", "kind", "queued_at"],
        sqlite_where=IS_LIVE,
        postgresql_where=IS_LIVE,
    )
    op.add_column("workers", sa.Column("gpu_load", _JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "gpu_load")
    op.drop_index("ix_jobs_live", "jobs")
    op.drop_column("jobs", "queued_at")
    op.drop_table("tallies")
