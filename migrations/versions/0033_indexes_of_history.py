"""Indexes by which history goes in small steps, and smaller ones of events; Postgres cleans up sooner what
changes often.

A job's row changes six times while it runs. By its defaults Postgres would clean up after a fifth of all jobs
has changed: at a million jobs after two hundred thousand dead rows, each still in the index that claims read.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0033"
down_revision = "0032"
branch_labels = None
depends_on = None
expands = True

_ENGINES = ("build_id", "build_job_id", "measure_job_id")
_EVENTS = ("build_id", "job_id")
_BUSY = {
    "jobs": "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000",
    "builds": "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000",
    # Few rows, each of which changes with every job.
    "tallies": "fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000",
    "workers": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000",
}


def upgrade() -> None:
    for column in _ENGINES:
        op.create_index(f"ix_engines_{column}", "engines", [column])
    op.create_index("ix_job_samples_began_at", "job_samples", ["began_at"])
    for column in _EVENTS:
        op.drop_index(f"ix_events_{column}_id", "events")
        given = sa.text(f"events.{column} IS NOT NULL")
        op.create_index(
            f"ix_events_{column}_id",
            "events",
            [column, "id"],
            sqlite_where=given,
            postgresql_where=given,
        )
    if op.get_bind().dialect.name == "postgresql":
        for table, options in _BUSY.items():
            op.execute(f"ALTER TABLE {table} SET ({options})")


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, options in _BUSY.items():
            names = ", ".join(one.split(" = ")[0] for one in options.split(", "))
            op.execute(f"ALTER TABLE {table} RESET ({names})")
    for column in _EVENTS:
        op.drop_index(f"ix_events_{column}_id", "events")
        op.create_index(f"ix_events_{column}_id", "events", [column, "id"])
    op.drop_index("ix_job_samples_began_at", "job_samples")
    for column in _ENGINES:
        op.drop_index(f"ix_engines_{column}", "engines")
