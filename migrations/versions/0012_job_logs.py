"""What jobs print stands in a table of its own: those who look for events don't read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# As they were here: the application's own may change.
_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_EVENTS = sa.table(
    "events", sa.column("id", _ID), sa.column("kind", sa.String), sa.column("data", _JSON)
)
_LOGS = sa.table("job_logs", sa.column("event_id", _ID), sa.column("text", sa.Text))
_AT_ONCE, _MOST_CHARS = 500, 2**23  #: rows and text in memory
_IS_LOG = _EVENTS.c.kind == "log"
_OF = sa.bindparam("of_event")


def upgrade() -> None:
    op.create_table(
        "job_logs",
        sa.Column("event_id", _ID, autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"],
            ["events.id"],
            name="fk_job_logs_event_id_events",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("event_id", name="pk_job_logs"),
    )
    connection = op.get_bind()
    slim = sa.update(_EVENTS).where(_EVENTS.c.id == _OF).values(data=sa.bindparam("rest"))
    size = sa.func.length(sa.cast(_EVENTS.c.data, sa.Text))
    for few in _batches(sa.select(_EVENTS.c.id, size).where(_IS_LOG), _EVENTS.c.id):
        printed = sa.select(_EVENTS.c.id, _EVENTS.c.data).where(_IS_LOG, few)
        texts, rests = [], []
        for number, data in connection.execute(printed):
            texts.append({"event_id": number, "text": _encodable(data.pop("text"))})
            rests.append({"of_event": number, "rest": data})
        connection.execute(sa.insert(_LOGS), texts)
        connection.execute(slim, rests)


def downgrade() -> None:
    connection = op.get_bind()
    whole = sa.update(_EVENTS).where(_EVENTS.c.id == _OF).values(data=sa.bindparam("whole"))
    sizes = sa.select(_LOGS.c.event_id, sa.func.length(_LOGS.c.text))
    of_log = _LOGS.c.event_id == _EVENTS.c.id
    for few in _batches(sizes, _LOGS.c.event_id):
        printed = sa.select(_EVENTS.c.id, _EVENTS.c.data, _LOGS.c.text).join(_LOGS, of_log)
        wholes = [
            {"of_event": number, "whole": {"text": text, **data}}
            for number, data, text in connection.execute(printed.where(few))
        ]
        connection.execute(whole, wholes)
    op.drop_table("job_logs")


def _batches(
    sizes: sa.Select[Any], number: sa.ColumnElement[int]
) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions, each true of a few rows that memory has room for, and together of all."""
    past = 0
    page = sizes.order_by(number).limit(_AT_ONCE)
    while rows := op.get_bind().execute(page.where(number > past)).all():
        held = 0
        for one, size in rows:
            held += size
            if held > _MOST_CHARS or one == rows[-1][0]:
                yield sa.and_(number > past, number <= one)
                past, held = one, 0


def _encodable(text: str) -> str:
    """SQLite kept lone surrogates in JSON, where they are escaped, and keeps none in a text."""
    return text.encode(errors="backslashreplace").decode()
