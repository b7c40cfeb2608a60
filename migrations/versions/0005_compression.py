"""Compressed engines: how one was pruned, and names of precisions longer than ten characters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

#: Table → whether its precision may be unknown.
_PRECISIONS = {"jobs": True, "wanted_engines": False, "engines": False}


def upgrade() -> None:
    op.add_column("engines", sa.Column("prune", sa.String(length=40), nullable=True))
    _resize(10, 20)


def downgrade() -> None:
    _resize(20, 10)
    op.drop_column("engines", "prune")


def _resize(before: int, after: int) -> None:
    # SQLite knows no lengths, and would copy the table to write down another.
    if op.get_bind().dialect.name == "sqlite":
        return
    for table, nullable in _PRECISIONS.items():
        op.alter_column(
            table,
            "precision",
            existing_type=sa.String(length=before),
            type_=sa.String(length=after),
            existing_nullable=nullable,
        )
