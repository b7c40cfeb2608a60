"""Alembic's entry: the connection is given by ``farm.database.migrate``, or made from the settings."""

from __future__ import annotations

from alembic import context
from sqlalchemy.engine import Connection

from farm.database import tables
from farm.database.base import Base
from farm.database.session import Database
from farm.settings import Settings

assert tables  # imported for its tables


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with Database(Settings().database).engine.connect() as own:
        run(own)
        own.commit()
