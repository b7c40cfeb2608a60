"""Versions can be deleted, models have rules of what is kept, and engines remember their last pull."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("versions", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "engine_pulls",
        sa.Column("engine_id", sa.String(length=16), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["engine_id"], ["engines.id"], name=op.f("fk_engine_pulls_engine_id_engines")
        ),
        sa.PrimaryKeyConstraint("engine_id", name=op.f("pk_engine_pulls")),
    )
    op.create_table(
        "retentions",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("rule", _JSON, nullable=False),
        sa.Column("who", sa.String(length=400), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_retentions_model_id_models")
        ),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_retentions")),
    )


def downgrade() -> None:
    op.drop_table("retentions")
    op.drop_table("engine_pulls")
    # A deleted version comes back as one without engines.
    op.drop_column("versions", "deleted_at")
