"""Tags remember whether an administrator's key wrote them. Who wrote earlier ones isn't known: below
``mirror/``, where `farm mirror` writes, they count as an administrator's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_TAGS = sa.table("oci_tags", sa.column("repository", sa.String()), sa.column("is_admins"))


def upgrade() -> None:
    op.add_column(
        "oci_tags",
        sa.Column("is_admins", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.execute(
        sa.update(_TAGS).where(_TAGS.c.repository.like("mirror/%")).values(is_admins=sa.true())
    )


def downgrade() -> None:
    op.drop_column("oci_tags", "is_admins")
