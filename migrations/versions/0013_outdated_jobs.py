"""Jobs know how their tools are outdated; their toolchain is told by their recipes alone; and an index goes
that no query uses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_INDEX, _OUTDATED = "ix_jobs_state_lease_until", "ix_jobs_outdated"
_IS_OUTDATED = sa.text("outdated IS NOT NULL")


def upgrade() -> None:
    op.drop_index(_INDEX, "jobs")
    op.drop_column("jobs", "toolchain")
    op.add_column("jobs", sa.Column("outdated", sa.String(length=200), nullable=True))
    op.create_index(
        _OUTDATED, "jobs", ["outdated"], sqlite_where=_IS_OUTDATED, postgresql_where=_IS_OUTDATED
    )


def downgrade() -> None:
    op.drop_index(_OUTDATED, "jobs")
    op.drop_column("jobs", "outdated")
    op.add_column("jobs", sa.Column("toolchain", _JSON, nullable=False, server_default="{}"))
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    copied = (
        "UPDATE jobs SET toolchain = json_extract(recipe, '$.tools')"
        if is_sqlite
        else "UPDATE jobs SET toolchain = recipe -> 'tools'"
    )
    op.execute(copied)
    op.create_index(_INDEX, "jobs", ["state", "lease_until"])
