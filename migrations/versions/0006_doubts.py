"""Engines that are built and doubtful: whether one is, and why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "engines",
        sa.Column("state", sa.String(length=10), nullable=False, server_default="ready"),
    )
    json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
    op.add_column("engines", sa.Column("doubts", json, nullable=True))
    op.add_column("builds", sa.Column("gates", json, nullable=True))


def downgrade() -> None:
    op.drop_column("builds", "gates")
    op.drop_column("engines", "doubts")
    op.drop_column("engines", "state")
