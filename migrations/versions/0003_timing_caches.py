"""The fleet's timing caches: one a GPU and toolchain."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "timing_caches",
        sa.Column("gpu", sa.String(length=100), nullable=False),
        sa.Column("compute_capability", sa.String(length=20), nullable=False),
        sa.Column("tensorrt", sa.String(length=40), nullable=False),
        sa.Column("cuda", sa.String(length=10), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=True),
        sa.Column("builds", sa.Integer(), nullable=False),
        sa.Column("hits", sa.Integer(), nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"], ["artifacts.digest"], name=op.f("fk_timing_caches_digest_artifacts")
        ),
        sa.PrimaryKeyConstraint(
            "gpu", "compute_capability", "tensorrt", "cuda", name=op.f("pk_timing_caches")
        ),
    )


def downgrade() -> None:
    op.drop_table("timing_caches")
