"""Engines are signed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    instant = sa.DateTime(timezone=True)
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.String(length=64), primary_key=True),
        sa.Column("pem", sa.Text, nullable=False),
        sa.Column("created_at", instant, nullable=False),
        sa.Column("revoked_at", instant),
    )
    key = "signing_keys.id"
    op.create_table(
        "signing_vouchers",
        sa.Column("key_id", sa.String(length=64), sa.ForeignKey(key), primary_key=True),
        sa.Column("by_id", sa.String(length=64), sa.ForeignKey(key), primary_key=True),
        sa.Column("bundle", sa.Text, nullable=False),
    )
    engine = sa.ForeignKey("engines.id", ondelete="CASCADE")
    op.create_table(
        "engine_signatures",
        sa.Column("engine_id", sa.String(length=16), engine, primary_key=True),
        sa.Column("key_id", sa.String(length=64), sa.ForeignKey(key), nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("created_at", instant, nullable=False),
    )
    op.create_index("ix_engine_signatures_key_id", "engine_signatures", ["key_id"])


def downgrade() -> None:
    op.drop_table("engine_signatures")
    op.drop_table("signing_vouchers")
    op.drop_table("signing_keys")
