"""Versions keep the goal that their engines for a GPU are ranked by, and builds what they left out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "goals",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("gpu", sa.String(length=100), nullable=False),
        sa.Column("aim", sa.String(length=20), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_goals_version_id_versions")
        ),
        sa.PrimaryKeyConstraint("version_id", "gpu", name=op.f("pk_goals")),
    )
    op.add_column("builds", sa.Column("left_out", _JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("builds", "left_out")
    op.drop_table("goals")
