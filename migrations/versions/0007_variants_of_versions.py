"""Variants: the same bytes with other inputs fixed, or of another architecture, are another version."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# As they were here: the application's own may change.
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_BEFORE = "uq_versions_model_id_source_digest"
_AFTER = "uq_versions_model_id_source_digest_variant"
_VERSIONS = sa.table(
    "versions",
    sa.column("id", sa.Integer),
    sa.column("model_id", sa.Integer),
    sa.column("source_digest", sa.String),
    sa.column("source_format", sa.String),
    sa.column("variant", sa.String),
    sa.column("architecture", _JSON),
)
_BUILDS = sa.table(
    "builds",
    sa.column("id", sa.String),
    sa.column("version_id", sa.Integer),
    sa.column("request", _JSON),
)
_ENGINES = sa.table("engines", sa.column("version_id", sa.Integer))


def upgrade() -> None:
    variant = sa.Column("variant", sa.String(length=71), nullable=False, server_default="")
    with op.batch_alter_table("versions") as batch:
        batch.add_column(variant)
        batch.add_column(sa.Column("fixed_inputs", _JSON, nullable=True))
        batch.add_column(sa.Column("architecture", _JSON, nullable=True))
        batch.drop_constraint(op.f(_BEFORE), type_="unique")
        batch.create_unique_constraint(op.f(_AFTER), ["model_id", "source_digest", "variant"])
    _tell_architectures()


def _tell_architectures() -> None:
    """A version of safetensors is of the architecture that it was first submitted with."""
    connection = op.get_bind()
    rows = connection.execute(
        sa.select(_VERSIONS.c.id, _BUILDS.c.request)
        .join(_BUILDS, _BUILDS.c.version_id == _VERSIONS.c.id)
        .where(_VERSIONS.c.source_format == "safetensors")
        .order_by(_BUILDS.c.id)
    ).all()
    first: dict[int, Any] = {}
    for version, request in rows:
        first.setdefault(version, request["source"].get("architecture"))
    for version, architecture in first.items():
        if architecture:
            told = {"architecture": architecture}
            text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
            digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
            connection.execute(
                sa.update(_VERSIONS)
                .where(_VERSIONS.c.id == version)
                .values(variant=digest, architecture=architecture)
            )


def downgrade() -> None:
    # Of several variants the first keeps its row, and the others' builds and engines become its.
    connection = op.get_bind()
    rows = connection.execute(
        sa.select(_VERSIONS.c.id, _VERSIONS.c.model_id, _VERSIONS.c.source_digest).order_by(
            _VERSIONS.c.id
        )
    ).all()
    first: dict[tuple[int, str], int] = {}
    for version, model, digest in rows:
        kept = first.setdefault((model, digest), version)
        if kept != version:
            for table in (_BUILDS, _ENGINES):
                connection.execute(
                    sa.update(table).where(table.c.version_id == version).values(version_id=kept)
                )
            connection.execute(sa.delete(_VERSIONS).where(_VERSIONS.c.id == version))
    with op.batch_alter_table("versions") as batch:
        batch.drop_constraint(op.f(_AFTER), type_="unique")
        batch.create_unique_constraint(op.f(_BEFORE), ["model_id", "source_digest"])
        for column in ("architecture", "fixed_inputs", "variant"):
            batch.drop_column(column)
