"""Jobs know the size of their source, and workers say how many jobs they run at once: forecasts need both.
What runs now is found by an index.

The size is filled in for jobs that have run, as far as their source is still known.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_HAS_RUN = sa.text("jobs.facts IS NOT NULL AND jobs.started_at IS NOT NULL")
_IS_RUNNING = sa.text("jobs.state = 'running'")
_FILL = """
UPDATE jobs SET source_bytes = (
    SELECT max(artifacts.bytes)
    FROM build_jobs
    JOIN builds ON builds.id = build_jobs.build_id
    JOIN versions ON versions.id = builds.version_id
    JOIN artifacts ON artifacts.digest = versions.source_digest
    WHERE build_jobs.job_id = jobs.id
)
"""


def upgrade() -> None:
    op.add_column("jobs", sa.Column("source_bytes", sa.BigInteger()))
    op.execute(_FILL)
    op.create_index(
        "ix_jobs_like",
        "jobs",
        ["kind", "runtime", "precision", "source_bytes", "id"],
        sqlite_where=_HAS_RUN,
        postgresql_where=_HAS_RUN,
    )
    op.create_index(
        "ix_jobs_running_queue",
        "jobs",
        ["queue"],
        sqlite_where=_IS_RUNNING,
        postgresql_where=_IS_RUNNING,
    )
    op.add_column("workers", sa.Column("slots", sa.Integer(), nullable=False, server_default="1"))


def downgrade() -> None:
    op.drop_column("workers", "slots")
    op.drop_index("ix_jobs_running_queue", table_name="jobs")
    op.drop_index("ix_jobs_like", table_name="jobs")
    op.drop_column("jobs", "source_bytes")
