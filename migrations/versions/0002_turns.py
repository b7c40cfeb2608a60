"""The order in which a queue's jobs are claimed: clients take turns, what was interrupted waits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from farm.db import Instant

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_QUEUED = sa.text("state = 'queued'")
_OF_QUEUED = {"ix_jobs_rung_at": ["rung_at"], "ix_jobs_queue_place_id": ["queue", "place", "id"]}


def upgrade() -> None:
    # Defaults of the server's, for the rows that are there.
    client = sa.Column("client", sa.String(length=100), nullable=False, server_default="")
    op.add_column("builds", client)
    for table, name in (("builds", "turn"), ("jobs", "place")):
        column = sa.Column(name, sa.BigInteger(), nullable=False, server_default="0")
        op.add_column(table, column)
    # Before this, as `farm.turns` would have placed them.
    op.execute("UPDATE jobs SET place = (9 - priority) * CAST(1099511627776 AS BIGINT)")
    op.add_column("jobs", sa.Column("not_before", Instant(), nullable=True))
    op.create_index("ix_builds_client_state_turn", "builds", ["client", "state", "turn"])
    op.create_index("ix_jobs_started_at", "jobs", ["started_at"])
    for name, columns in _OF_QUEUED.items():
        op.create_index(name, "jobs", columns, sqlite_where=_QUEUED, postgresql_where=_QUEUED)


def downgrade() -> None:
    for name in _OF_QUEUED:
        op.drop_index(name, "jobs")
    op.drop_index("ix_jobs_started_at", "jobs")
    op.drop_index("ix_builds_client_state_turn", "builds")
    op.drop_column("jobs", "not_before")
    op.drop_column("jobs", "place")
    op.drop_column("builds", "turn")
    op.drop_column("builds", "client")
