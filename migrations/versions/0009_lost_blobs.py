"""Blobs that were found damaged, since when; and which store the blobs are in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifacts", sa.Column("lost_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "stores",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stores"),
    )


def downgrade() -> None:
    op.drop_table("stores")
    op.drop_column("artifacts", "lost_at")
