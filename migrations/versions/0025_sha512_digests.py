"""What OCI clients push may be named by its sha512, whose digits are twice as many."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None

_SHORT, _LONG = sa.String(length=71), sa.String(length=135)
_SHA512 = "sha512:%"
_COLUMNS = (
    ("oci_documents", "digest", False),
    ("oci_manifests", "digest", False),
    ("oci_manifests", "subject", True),
    ("oci_tags", "digest", False),
)


def _make(before: sa.String, after: sa.String) -> None:
    for table, column, nullable in _COLUMNS:
        with op.batch_alter_table(table) as batch:
            batch.alter_column(
                column, existing_type=before, type_=after, existing_nullable=nullable
            )


def upgrade() -> None:
    _make(_SHORT, _LONG)
    op.create_table(
        "oci_digests",
        sa.Column("digest", _LONG, nullable=False),
        sa.Column("content", _SHORT, nullable=False),
        sa.ForeignKeyConstraint(
            ["content"],
            ["artifacts.digest"],
            name=op.f("fk_oci_digests_content_artifacts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_oci_digests")),
    )
    op.create_index("ix_oci_digests_content", "oci_digests", ["content"])


def downgrade() -> None:
    op.drop_table("oci_digests")
    # What has no other name than a sha512 goes: the version before can't say it.
    for name in ("oci_tags", "oci_manifests", "oci_documents"):
        digest: sa.ColumnClause[str] = sa.column("digest", sa.String())
        op.execute(sa.delete(sa.table(name, digest)).where(digest.like(_SHA512)))
    subject: sa.ColumnClause[str] = sa.column("subject", sa.String())
    about = sa.update(sa.table("oci_manifests", subject)).where(subject.like(_SHA512))
    op.execute(about.values(subject=None))
    _make(_LONG, _SHORT)
