"""What OCI clients pull and push: manifests, tags, and blobs by repository."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "oci_documents",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("media_type", sa.String(length=255), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_oci_documents")),
    )
    op.create_table(
        "oci_manifests",
        sa.Column("repository", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("subject", sa.String(length=71), nullable=True),
        sa.Column("needs", _JSON, nullable=False),
        sa.Column("engine_id", sa.String(length=16), nullable=True),
        sa.Column("version_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["oci_documents.digest"],
            name=op.f("fk_oci_manifests_digest_oci_documents"),
        ),
        sa.ForeignKeyConstraint(
            ["engine_id"],
            ["engines.id"],
            name=op.f("fk_oci_manifests_engine_id_engines"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["versions.id"],
            name=op.f("fk_oci_manifests_version_id_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("repository", "digest", name=op.f("pk_oci_manifests")),
    )
    op.create_index(
        "ix_oci_manifests_repository_subject", "oci_manifests", ["repository", "subject"]
    )
    op.create_index("ix_oci_manifests_engine_id", "oci_manifests", ["engine_id"])
    op.create_index("ix_oci_manifests_version_id", "oci_manifests", ["version_id"])
    op.create_table(
        "oci_tags",
        sa.Column("repository", sa.String(length=255), nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.ForeignKeyConstraint(
            ["repository", "digest"],
            ["oci_manifests.repository", "oci_manifests.digest"],
            name=op.f("fk_oci_tags_repository_digest_oci_manifests"),
        ),
        sa.PrimaryKeyConstraint("repository", "tag", name=op.f("pk_oci_tags")),
    )
    op.create_table(
        "oci_blobs",
        sa.Column("repository", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"],
            ["artifacts.digest"],
            name=op.f("fk_oci_blobs_digest_artifacts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("repository", "digest", name=op.f("pk_oci_blobs")),
    )
    op.create_index("ix_oci_blobs_digest", "oci_blobs", ["digest"])


def downgrade() -> None:
    for table in ("oci_blobs", "oci_tags", "oci_manifests", "oci_documents"):
        op.drop_table(table)
