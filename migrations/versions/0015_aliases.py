"""Models have aliases, versions and engines can be yanked, and engines are found by digest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_aliases_model_id_models")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_aliases_version_id_versions")
        ),
        sa.PrimaryKeyConstraint("model_id", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("action", sa.String(length=10), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("before_id", sa.Integer(), nullable=True),
        sa.Column("who", sa.String(length=400), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("left_out", _JSON, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id", "name"],
            ["aliases.model_id", "aliases.name"],
            name=op.f("fk_alias_moves_model_id_aliases"),
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_alias_moves_version_id_versions")
        ),
        sa.ForeignKeyConstraint(
            ["before_id"], ["versions.id"], name=op.f("fk_alias_moves_before_id_versions")
        ),
        sa.PrimaryKeyConstraint("model_id", "name", "revision", name=op.f("pk_alias_moves")),
    )
    op.create_table(
        "yanks",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("same", sa.String(length=100), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("who", sa.String(length=400), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_yanks_version_id_versions")
        ),
        sa.PrimaryKeyConstraint("version_id", "same", name=op.f("pk_yanks")),
    )
    op.create_index("ix_engines_digest", "engines", ["digest"])


def downgrade() -> None:
    op.drop_index("ix_engines_digest", "engines")
    op.drop_table("yanks")
    op.drop_table("alias_moves")
    op.drop_table("aliases")
