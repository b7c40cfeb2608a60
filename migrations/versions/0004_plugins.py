"""Plugin libraries of TensorRT that an operator has signed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "plugins",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("signature", sa.String(length=100), nullable=False),
        sa.Column("key", sa.String(length=50), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"], ["artifacts.digest"], name=op.f("fk_plugins_digest_artifacts")
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_plugins")),
    )


def downgrade() -> None:
    op.drop_table("plugins")
