"""The order in which a queue's jobs are claimed: clients take turns, what was interrupted waits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)

_QUEUED = sa.text("state = 'queued'")
_IN_LINE = sa.text("state IN ('waiting', 'queued')")
_INDEXES = {
    "ix_jobs_finished_at": (["finished_at"], None),
    "ix_jobs_queue_priority_started_at": (["queue", "priority", "started_at"], None),
    "ix_jobs_queue_client_place": (["queue", "client", "place"], _IN_LINE),
    "ix_jobs_rung_at": (["rung_at"], _QUEUED),
    "ix_jobs_queue_place_id": (["queue", "place", "id"], _QUEUED),
}


def upgrade() -> None:
    # Defaults of the server's, for the rows that are there.
    for table in ("builds", "jobs"):
        client = sa.Column("client", sa.String(length=100), nullable=False, server_default="")
        op.add_column(table, client)
    place = sa.Column("place", sa.BigInteger(), nullable=False, server_default="0")
    op.add_column("jobs", place)
    # Before this, as `farm.queue.turns` would have placed them.
    op.execute("UPDATE jobs SET place = (9 - priority) * CAST(1099511627776 AS BIGINT)")
    op.add_column("jobs", sa.Column("not_before", INSTANT, nullable=True))
    for name, (columns, where) in _INDEXES.items():
        op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    for name in _INDEXES:
        op.drop_index(name, "jobs")
    for column in ("not_before", "place", "client"):
        op.drop_column("jobs", column)
    op.drop_column("builds", "client")
