"""Ids of builds and engines, given by their first characters."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from farm.database.ids import begins_id, is_id
from farm.database.tables import Build, EngineRow
from farm.errors import IdAmbiguous, NotFound

LAST = "last"  #: names the newest build
_MOST_LISTED = 5
_AFTER_ALL = "z" * 16


def build_id(session: Session, given: str, *, client: str | None = None) -> str:
    """The whole id of the build that ``given`` begins, or of the newest; else ``given`` as it is.

    Parameters:
        client: whose newest build it is; by default anybody's.

    Raises:
        IdAmbiguous: it begins several.
        NotFound: there is no newest build.
    """
    return _newest(session, client) if given == LAST else _whole(session, Build.id, given, "builds")


def engine_id(session: Session, given: str) -> str:
    """The whole id of the engine that ``given`` begins; else ``given`` as it is.

    Raises:
        IdAmbiguous: it begins several.
    """
    return _whole(session, EngineRow.id, given, "engines")


def _newest(session: Session, client: str | None) -> str:
    newest = select(Build.id).order_by(Build.id.desc()).limit(1)
    if client is not None:
        newest = newest.where(Build.client == client)
    found = session.scalar(newest)
    if found is None:
        whose = "there is no build yet" if client is None else "there is no build of this key yet"
        raise NotFound(whose, hint="`farm builds` lists everybody's")
    return found


def _whole(session: Session, column: InstrumentedAttribute[str], given: str, what: str) -> str:
    low = given.lower()
    if is_id(low) or not begins_id(low):
        return given
    begun = select(column).where(column.between(low, low + _AFTER_ALL)).order_by(column.desc())
    found = session.scalars(begun.limit(_MOST_LISTED + 1)).all()
    if len(found) > 1:
        more = "…" if len(found) > _MOST_LISTED else ""
        listed = ", ".join(found[:_MOST_LISTED])
        raise IdAmbiguous(f"the ids of several {what} begin with {given!r}: {listed}{more}")
    return found[0] if found else given
