"""Models are found whatever the case of their name.

A name that another model has in another case is left without its folded form: both keep their names, and no
index could hold them together."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_INDEX = "uq_models_folded"
_MODELS = sa.table("models", sa.column("id"), sa.column("name"), sa.column("folded"))


def upgrade() -> None:
    op.add_column("models", sa.Column("folded", sa.String(length=100), nullable=True))
    # Folded here: what SQL's lower() makes of an I depends on the database's locale.
    there = op.get_bind().execute(sa.select(_MODELS.c.id, _MODELS.c.name)).all()
    alike = Counter(name.lower() for _, name in there)
    alone = [{"key": key, "value": name.lower()} for key, name in there if alike[name.lower()] == 1]
    if alone:
        changed = sa.update(_MODELS).where(_MODELS.c.id == sa.bindparam("key"))
        op.get_bind().execute(changed.values(folded=sa.bindparam("value")), alone)
    op.create_index(_INDEX, "models", ["folded"], unique=True)


def downgrade() -> None:
    op.drop_index(_INDEX, "models")
    op.drop_column("models", "folded")
