"""What refers to blobs, as the tables declare it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ColumnElement, Select, String, cast, or_, select, text
from sqlalchemy.orm import Session

from farm.database import tables
from farm.database.base import Base
from farm.database.declared import ANY, Holds, Names
from farm.database.ids import first_id

_ROWS = 1000  #: per read
#: Few enough for a prefilter in SQL; for more, all rows are read.
_FEW = 50

assert tables  # imported for what they declare


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A row that names a blob."""

    table: type[Base]
    holds: Holds
    row: Any  #: its primary key; a tuple if that has several columns
    digest: str
    role: str = ""  #: where in a JSON column: the name beside it


def declared() -> Iterator[tuple[type[Base], str, Names]]:
    """Every column that names blobs."""
    for mapper in sorted(Base.registry.mappers, key=lambda one: one.class_.__name__):
        table: type[Base] = mapper.class_
        for column, names in table.blobs.items():
            yield table, column, names


def referred(session: Session, *, since: datetime | None = None) -> set[str]:
    """The digests of all blobs that anything in the database refers to.

    Parameters:
        since: only those that rows from after this time name, and those that are cheap to read.
    """
    return {one.digest for one in _all(session, since=since)}


def every(session: Session) -> Iterator[Reference]:
    """Everything in the database that refers to a blob."""
    return _all(session)


def holders(session: Session, digests: Collection[str]) -> Mapping[str, Sequence[Reference]]:
    """Of these blobs, those that are referred to, each with all that refers to it."""
    found: defaultdict[str, list[Reference]] = defaultdict(list)
    for one in _all(session, among=set(digests)) if digests else ():
        found[one.digest].append(one)
    return dict(found)


def _all(
    session: Session, *, among: set[str] | None = None, since: datetime | None = None
) -> Iterator[Reference]:
    for table, name, names in declared():
        if since is None or not names.comes_with:
            for row, role, digest in _named(session, table, name, names, among, since):
                yield Reference(table=table, holds=names.holds, row=row, digest=digest, role=role)


def _named(
    session: Session,
    table: type[Base],
    name: str,
    names: Names,
    among: set[str] | None,
    since: datetime | None,
) -> Iterator[tuple[Any, str, str]]:
    column = getattr(table, name)
    key = list(table.__mapper__.primary_key)
    values = _values(column, names)
    statement = select(*key, *values)
    if names.only:
        statement = statement.where(text(names.only))
    if names.newer and since is not None:
        by = getattr(table, names.newer)
        statement = statement.where(by >= (first_id(since) if names.newer == "id" else since))
    if among is not None and len(among) <= _FEW:
        statement = statement.where(_mentions(column, among))
    for row in _rows(session, statement):
        place = row[0] if len(key) == 1 else tuple(row[: len(key)])
        for path, value in zip(names.paths, row[len(key) :], strict=True):
            for role, digest in _told(value, path):
                # A job's input is named by the job that makes it: key#role.
                is_one = isinstance(digest, str) and "#" not in digest
                if is_one and (among is None or digest in among):
                    yield place, role, digest


def _told(value: Any, path: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The digests in a value, each with its role."""
    if isinstance(value, dict):
        yield from value.items()
    else:
        role = path[0] if path else ""
        yield from ((role, one) for one in (value if isinstance(value, list) else [value]))


def _values(column: Any, names: Names) -> list[Any]:
    """What to select of a column: each a digest, or an object whose values are digests."""
    found: list[Any] = []
    for path in names.paths:
        if path == () or path == (ANY,):
            found.append(column)
        elif path[-1] == ANY:
            found.append(column[path[:-1]] if len(path) > 2 else column[path[0]])
        else:
            found.append(column[path].as_string())
    return found


def _mentions(column: Any, digests: Collection[str]) -> ColumnElement[bool]:
    if isinstance(column.type, JSON) or not isinstance(column.type, String):
        return or_(*(cast(column, String).contains(one, autoescape=True) for one in digests))
    found: ColumnElement[bool] = column.in_(digests)
    return found


def _rows(session: Session, statement: Select[*tuple[Any, ...]]) -> Any:
    return session.execute(statement.execution_options(yield_per=_ROWS))
