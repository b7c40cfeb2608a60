"""Builds and jobs remember the traces they belong to; earlier ones belong to none."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None
expands = True

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    for table in ("builds", "jobs"):
        op.add_column(table, sa.Column("trace", _JSON, nullable=True))


def downgrade() -> None:
    for table in ("jobs", "builds"):
        op.drop_column(table, "trace")
