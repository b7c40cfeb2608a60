"""Parameters that are kept once, and that the recipes of jobs name by their digest."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# As it was here: the application's own may change.
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "shared_parameters",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("value", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_shared_parameters")),
    )


def downgrade() -> None:
    op.drop_table("shared_parameters")
