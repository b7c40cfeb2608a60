"""A database connection that breaks between a unit of work's last statement and its end."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database.session import Database
from farm.database.tables import Model
from farm.errors import NotFound


def cut(session: Session) -> None:
    driver = session.connection().connection.driver_connection
    assert driver is not None
    driver.close()


def models(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(Model)) or 0


def fail(session: Session, error: Exception) -> None:
    """End with this error on a connection that has broken."""
    session.add(Model(name="lost"))
    session.flush()
    cut(session)
    raise error


def test_what_was_read_stands(db: Database) -> None:
    with db.read() as session:
        found = session.scalar(select(func.count()).select_from(Model))
        cut(session)
    assert found == 0


def test_an_error_keeps_its_own_words(db: Database) -> None:
    with pytest.raises(NotFound, match="no such build"), db.read() as session:
        fail(session, NotFound("no such build"))


def test_nothing_is_written_and_the_next_unit_of_work_has_another_connection(db: Database) -> None:
    with pytest.raises(NotFound, match="no such version"), db.write() as session:
        fail(session, NotFound("no such version"))
    assert models(db) == 0
    with db.write() as session:
        session.add(Model(name="kept"))
    assert models(db) == 1
