"""An alias's latest move is signed. Those of before are when they are moved again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alias_statements",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("bundle", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id", "name"],
            ["aliases.model_id", "aliases.name"],
            name=op.f("fk_alias_statements_model_id_aliases"),
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["signing_keys.id"], name=op.f("fk_alias_statements_key_id_signing_keys")
        ),
        sa.PrimaryKeyConstraint("model_id", "name", name=op.f("pk_alias_statements")),
    )
    op.create_index("ix_alias_statements_key_id", "alias_statements", ["key_id"])


def downgrade() -> None:
    op.drop_table("alias_statements")
