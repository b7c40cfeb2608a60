"""Limits of keys, what counts for them: who stored a blob first, and how long jobs took GPUs; and
issuers' subjects beside the keys.

Counting begins here: what is in the store by now counts for nobody.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None

# As it was here: the application's own may change.
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("limits", _JSON, nullable=True))
    op.add_column("api_keys", sa.Column("issuer", sa.String(length=400), nullable=True))
    op.add_column("api_keys", sa.Column("subject", sa.String(length=255), nullable=True))
    op.add_column("logins", sa.Column("scopes", _JSON, nullable=True))
    op.add_column("logins", sa.Column("until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("artifacts", sa.Column("owner", sa.String(length=100), nullable=True))
    op.create_index("ix_artifacts_owner_bytes", "artifacts", ["owner", "bytes"])
    op.create_table(
        "gpu_times",
        sa.Column("client", sa.String(length=100), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("client", "day", name=op.f("pk_gpu_times")),
    )


def downgrade() -> None:
    op.drop_table("gpu_times")
    op.drop_index("ix_artifacts_owner_bytes", "artifacts")
    op.drop_column("artifacts", "owner")
    op.drop_column("logins", "until")
    op.drop_column("logins", "scopes")
    for column in ("subject", "issuer", "limits"):
        op.drop_column("api_keys", column)
