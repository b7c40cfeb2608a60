"""the first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INSTANT = sa.DateTime(timezone=True)
# None is SQL's NULL, not JSON's null.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# SQLite counts up only an INTEGER PRIMARY KEY.
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_artifacts")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("key", sa.String(length=71), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("title", sa.String(length=250), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("toolchain", JSON, nullable=False),
        sa.Column("runtime", sa.String(length=20), nullable=True),
        sa.Column("target", sa.String(length=60), nullable=True),
        sa.Column("precision", sa.String(length=10), nullable=True),
        sa.Column("queue", sa.String(length=80), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("needs", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("first_attempt", sa.Integer(), nullable=False),
        sa.Column("rung_at", INSTANT, nullable=True),
        sa.Column("owner", sa.String(length=200), nullable=True),
        sa.Column("lease_until", INSTANT, nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("phase", sa.String(length=100), nullable=True),
        sa.Column("progress", sa.Double(), nullable=True),
        sa.Column("outputs", JSON, nullable=True),
        sa.Column("facts", JSON, nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=True),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index("ix_jobs_kind_id", ["kind", "id"], unique=False)
        batch_op.create_index("ix_jobs_state_lease_until", ["state", "lease_until"], unique=False)
        batch_op.create_index(
            "uq_jobs_key_usable",
            ["key"],
            unique=True,
            sqlite_where=sa.text("state NOT IN ('failed', 'cancelled')"),
            postgresql_where=sa.text("state NOT IN ('failed', 'cancelled')"),
        )

    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("gpu", sa.String(length=100), nullable=True),
        sa.Column("gpu_uuid", sa.String(length=100), nullable=True),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("queues", JSON, nullable=False),
        sa.Column("runtimes", JSON, nullable=False),
        sa.Column("toolchain", JSON, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("last_seen_at", INSTANT, nullable=False),
        sa.Column("left_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_table(
        "job_inputs",
        sa.Column("job_id", BIG_ID, nullable=False),
        sa.Column("role", sa.String(length=30), nullable=False),
        sa.Column("needs_id", BIG_ID, nullable=False),
        sa.Column("output", sa.String(length=30), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_inputs_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["needs_id"], ["jobs.id"], name=op.f("fk_job_inputs_needs_id_jobs")
        ),
        sa.PrimaryKeyConstraint("job_id", "role", name=op.f("pk_job_inputs")),
    )
    with op.batch_alter_table("job_inputs", schema=None) as batch_op:
        batch_op.create_index("ix_job_inputs_needs_id", ["needs_id"], unique=False)

    op.create_table(
        "versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("source_digest", sa.String(length=71), nullable=False),
        sa.Column("source_format", sa.String(length=20), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("fk_versions_model_id_models")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_versions_model_id_number")),
        sa.UniqueConstraint(
            "model_id", "source_digest", name=op.f("uq_versions_model_id_source_digest")
        ),
    )
    op.create_table(
        "builds",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("request", JSON, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=True),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_builds_version_id_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_builds")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_builds_idempotency_key")),
    )
    with op.batch_alter_table("builds", schema=None) as batch_op:
        batch_op.create_index("ix_builds_state_id", ["state", "id"], unique=False)
        batch_op.create_index("ix_builds_version_id_id", ["version_id", "id"], unique=False)

    op.create_table(
        "build_jobs",
        sa.Column("build_id", sa.String(length=16), nullable=False),
        sa.Column("job_id", BIG_ID, nullable=False),
        sa.Column("reuse", sa.String(length=10), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name=op.f("fk_build_jobs_build_id_builds")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_build_jobs_job_id_jobs")),
        sa.PrimaryKeyConstraint("build_id", "job_id", name=op.f("pk_build_jobs")),
    )
    with op.batch_alter_table("build_jobs", schema=None) as batch_op:
        batch_op.create_index("ix_build_jobs_job_id", ["job_id"], unique=False)

    op.create_table(
        "engines",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("runtime", sa.String(length=20), nullable=False),
        sa.Column("runtime_version", sa.String(length=40), nullable=False),
        sa.Column("gpu", sa.String(length=40), nullable=False),
        sa.Column("precision", sa.String(length=10), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("accuracy", JSON, nullable=False),
        sa.Column("metrics", JSON, nullable=True),
        sa.Column("metrics_reason", sa.Text(), nullable=True),
        sa.Column("io", JSON, nullable=False),
        sa.Column("toolchain", JSON, nullable=False),
        sa.Column("build_id", sa.String(length=16), nullable=False),
        sa.Column("build_job_id", BIG_ID, nullable=False),
        sa.Column("measure_job_id", BIG_ID, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name=op.f("fk_engines_build_id_builds")
        ),
        sa.ForeignKeyConstraint(
            ["build_job_id"], ["jobs.id"], name=op.f("fk_engines_build_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["digest"], ["artifacts.digest"], name=op.f("fk_engines_digest_artifacts")
        ),
        sa.ForeignKeyConstraint(
            ["measure_job_id"], ["jobs.id"], name=op.f("fk_engines_measure_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["versions.id"], name=op.f("fk_engines_version_id_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_engines")),
        sa.UniqueConstraint(
            "version_id",
            "build_job_id",
            "measure_job_id",
            name=op.f("uq_engines_version_id_build_job_id_measure_job_id"),
        ),
    )
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.create_index(
            "ix_engines_version_id_gpu_precision", ["version_id", "gpu", "precision"], unique=False
        )

    op.create_table(
        "events",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("build_id", sa.String(length=16), nullable=True),
        sa.Column("job_id", BIG_ID, nullable=True),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=True),
        sa.Column("data", JSON, nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name=op.f("fk_events_build_id_builds")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index("ix_events_build_id_id", ["build_id", "id"], unique=False)
        batch_op.create_index("ix_events_job_id_id", ["job_id", "id"], unique=False)

    op.create_table(
        "wanted_engines",
        sa.Column("build_id", sa.String(length=16), nullable=False),
        sa.Column("target", sa.String(length=60), nullable=False),
        sa.Column("precision", sa.String(length=10), nullable=False),
        sa.Column("asked", sa.String(length=100), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("build_job_id", BIG_ID, nullable=False),
        sa.Column("measure_job_id", BIG_ID, nullable=False),
        sa.Column("engine_id", sa.String(length=16), nullable=True),
        sa.ForeignKeyConstraint(
            ["build_id"], ["builds.id"], name=op.f("fk_wanted_engines_build_id_builds")
        ),
        sa.ForeignKeyConstraint(
            ["build_job_id"], ["jobs.id"], name=op.f("fk_wanted_engines_build_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["engine_id"], ["engines.id"], name=op.f("fk_wanted_engines_engine_id_engines")
        ),
        sa.ForeignKeyConstraint(
            ["measure_job_id"], ["jobs.id"], name=op.f("fk_wanted_engines_measure_job_id_jobs")
        ),
        sa.PrimaryKeyConstraint("build_id", "target", "precision", name=op.f("pk_wanted_engines")),
    )
    with op.batch_alter_table("wanted_engines", schema=None) as batch_op:
        batch_op.create_index("ix_wanted_engines_build_job_id", ["build_job_id"], unique=False)
        batch_op.create_index("ix_wanted_engines_measure_job_id", ["measure_job_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("wanted_engines", schema=None) as batch_op:
        batch_op.drop_index("ix_wanted_engines_measure_job_id")
        batch_op.drop_index("ix_wanted_engines_build_job_id")

    op.drop_table("wanted_engines")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index("ix_events_job_id_id")
        batch_op.drop_index("ix_events_build_id_id")

    op.drop_table("events")
    with op.batch_alter_table("engines", schema=None) as batch_op:
        batch_op.drop_index("ix_engines_version_id_gpu_precision")

    op.drop_table("engines")
    with op.batch_alter_table("build_jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_build_jobs_job_id")

    op.drop_table("build_jobs")
    with op.batch_alter_table("builds", schema=None) as batch_op:
        batch_op.drop_index("ix_builds_version_id_id")
        batch_op.drop_index("ix_builds_state_id")

    op.drop_table("builds")
    op.drop_table("versions")
    with op.batch_alter_table("job_inputs", schema=None) as batch_op:
        batch_op.drop_index("ix_job_inputs_needs_id")

    op.drop_table("job_inputs")
    op.drop_table("workers")
    op.drop_table("models")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_jobs_key_usable",
            sqlite_where=sa.text("state NOT IN ('failed', 'cancelled')"),
            postgresql_where=sa.text("state NOT IN ('failed', 'cancelled')"),
        )
        batch_op.drop_index("ix_jobs_state_lease_until")
        batch_op.drop_index("ix_jobs_kind_id")

    op.drop_table("jobs")
    op.drop_table("artifacts")
