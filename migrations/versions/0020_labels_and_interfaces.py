"""Versions and models have notes and labels, and a version its inputs and outputs.

Builds have their labels in a table as well, where they can be searched. A version's inputs and outputs are
those of its first export; none of these versions is held back for them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_AT_ONCE = 1000
_LABELS = sa.table("labels", sa.column("build_id"), sa.column("key"), sa.column("value"))
_BUILDS = sa.table("builds", sa.column("id"), sa.column("version_id"), sa.column("request", _JSON))
_VERSIONS = sa.table("versions", sa.column("id"), sa.column("interface", _JSON))
_JOBS = sa.table(
    "jobs", sa.column("id"), sa.column("kind"), sa.column("state"), sa.column("facts", _JSON)
)
_BUILD_JOBS = sa.table("build_jobs", sa.column("build_id"), sa.column("job_id"))


def upgrade() -> None:
    op.add_column("models", sa.Column("note", sa.Text(), nullable=True))
    for column in (
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("interface", _JSON, nullable=True),
        sa.Column("changes", _JSON, nullable=True),
        sa.Column("new_inputs", sa.Boolean(), nullable=False, server_default=sa.false()),
    ):
        op.add_column("versions", column)
    op.create_index("ix_versions_source_digest", "versions", ["source_digest"])
    op.create_table(
        "labels",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        *(_subject(table, kind) for table, kind in _SUBJECTS.items()),
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("value", sa.String(length=200), nullable=False),
        *(
            sa.UniqueConstraint(f"{one}_id", "key", name=op.f(f"uq_labels_{one}_id_key"))
            for one in _SUBJECTS
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
    )
    op.create_index("ix_labels_key_value", "labels", ["key", "value"])
    _index_labels()
    _tell_interfaces()


_SUBJECTS: dict[str, Any] = {
    "model": sa.Integer(),
    "version": sa.Integer(),
    "build": sa.String(length=16),
}


def _subject(name: str, kind: Any) -> sa.Column[Any]:
    key = sa.ForeignKey(
        f"{name}s.id", name=op.f(f"fk_labels_{name}_id_{name}s"), ondelete="CASCADE"
    )
    return sa.Column(f"{name}_id", kind, key, nullable=True)


def _index_labels() -> None:
    connection, last = op.get_bind(), ""
    while rows := connection.execute(
        sa.select(_BUILDS.c.id, _BUILDS.c.request)
        .where(_BUILDS.c.id > last)
        .order_by(_BUILDS.c.id)
        .limit(_AT_ONCE)
    ).all():
        found = [
            {"build_id": build, "key": key, "value": value}
            for build, request in rows
            for key, value in (request.get("labels") or {}).items()
        ]
        if found:
            connection.execute(sa.insert(_LABELS), found)
        last = rows[-1].id


def _tell_interfaces() -> None:
    """A version's inputs and outputs are those of its first export."""
    connection = op.get_bind()
    first = (
        sa.select(_BUILDS.c.version_id, sa.func.min(_JOBS.c.id).label("job_id"))
        .join(_BUILD_JOBS, _BUILD_JOBS.c.build_id == _BUILDS.c.id)
        .join(_JOBS, _JOBS.c.id == _BUILD_JOBS.c.job_id)
        .where(_JOBS.c.kind == "export", _JOBS.c.state == "succeeded")
        .group_by(_BUILDS.c.version_id)
        .subquery()
    )
    rows = connection.execute(
        sa.select(first.c.version_id, _JOBS.c.facts).join(first, first.c.job_id == _JOBS.c.id)
    ).all()
    for version, facts in rows:
        if facts and "inputs" in facts and "outputs" in facts:
            told = {way: facts[way] for way in ("inputs", "outputs")}
            connection.execute(
                sa.update(_VERSIONS).where(_VERSIONS.c.id == version).values(interface=told)
            )


def downgrade() -> None:
    op.drop_index("ix_labels_key_value", "labels")
    op.drop_table("labels")
    op.drop_index("ix_versions_source_digest", "versions")
    for column in ("new_inputs", "changes", "interface", "note"):
        op.drop_column("versions", column)
    op.drop_column("models", "note")
