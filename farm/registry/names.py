"""Models by name, in whatever case it is asked for.

Databases from before names were folded may hold names that differ in case alone. These rows have no folded
form, keep their names, and are found by their exact one; no further name of that kind is taken.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, or_, select
from sqlalchemy.orm import Session

from farm.database.tables import Model
from farm.errors import NameAmbiguous, NotFound
from farm.specs.names import folded

_MOST_TOLD = 10
# Built once: every submission looks its model up.
_CANDIDATES = (
    select(Model.id, Model.name)
    .where(or_(Model.folded == bindparam("folded"), Model.folded.is_(None)))
    .order_by(Model.id)
)


class Named(NamedTuple):
    """A model, and its name as it was first submitted."""

    id: int
    name: str


def named(session: Session, name: str) -> Named:
    """The model of this name: the exact one, or else the one that differs in case alone.

    Raises:
        NotFound: lists the existing names.
        NameAmbiguous: several differ in case alone, and none is exact.
    """
    found = _find(session, name)
    if found is None:
        names = ", ".join(
            session.scalars(select(Model.name).order_by(Model.name).limit(_MOST_TOLD))
        )
        raise NotFound(
            f"there is no model {name!r}",
            hint=f"the models are {names}" if names else "submit one: farm submit MODEL_FILE",
        )
    return found


def named_or_new(session: Session, name: str) -> Named:
    """The model of this name, as ``named``, or a new one.

    Two transactions that make names alike at once violate a unique index; the later one is to be repeated.

    Raises:
        NameAmbiguous
    """
    found = _find(session, name)
    if found is not None:
        return found
    model = Model(name=name, folded=folded(name))
    session.add(model)
    session.flush()
    return Named(id=model.id, name=model.name)


def _find(session: Session, name: str) -> Named | None:
    rows = session.connection().execute(_CANDIDATES, {"folded": folded(name)})
    alike = [Named(*row) for row in rows if folded(row.name) == folded(name)]
    for one in alike:
        if one.name == name:
            return one
    if len(alike) > 1:
        names = [one.name for one in alike[:_MOST_TOLD]]
        raise NameAmbiguous(
            f"{name!r} may be any of {', '.join(names)}", hint=f"write it exactly: {names[0]}"
        )
    return alike[0] if alike else None
