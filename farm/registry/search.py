"""Finds models, versions, engines and builds by name, label, note, digest, id and date.

Models come first, the one with exactly that name before others; then versions, engines and builds, newest
first. Digests, ids, labels, and the times of engines and builds are found by their indexes; names of models
and notes are read through, of which there are few beside builds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from farm.database.ids import first_id
from farm.database.tables import IS_KEPT, Artifact, Build, EngineRow, Model, Version
from farm.errors import InvalidRequest
from farm.registry import labels
from farm.registry.terms import Range, Terms, Word
from farm.schemas.search import Hit, Kind
from farm.specs.names import folded
from farm.specs.roles import Role

Condition = ColumnElement[bool]
#: Each with the cursor that continues after it.
Hits = list[tuple[str, Hit]]

_NAME = func.coalesce(Model.folded, func.lower(Model.name))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ORDER = list(Kind)


def search(
    session: Session, terms: Terms, *, after: str | None = None, limit: int
) -> tuple[list[Hit], str | None]:
    """A page of what matches, and the cursor of the next one.

    Parameters:
        after: the cursor of the page before.

    Raises:
        InvalidRequest: the cursor isn't one of the farm's.
    """
    first, key = _read(after) if after else (_ORDER[0], None)
    sought = [_sought(session, word) for word in terms.words]
    found: Hits = []
    for kind in _ORDER[_ORDER.index(first) :]:
        left = limit + 1 - len(found)
        if left > 0 and kind in terms.kinds:
            found += _FINDERS[kind](session, terms, sought, key if kind is first else None, left)
    more = found[limit - 1][0] if len(found) > limit else None
    return [hit for _, hit in found[:limit]], more


@dataclass(frozen=True, kw_only=True)
class Sought:
    """A word, and what is known of it beforehand: builds aren't read for what no model or file is called."""

    word: Word
    is_name: bool
    is_file: bool


def _sought(session: Session, word: Word) -> Sought:
    known = word.digest and session.scalar(
        select(Artifact.digest).where(_in(Artifact.digest, word.digest)).limit(1)
    )
    named = session.scalar(select(Model.id).where(_named(word)).limit(1))
    return Sought(word=word, is_name=named is not None, is_file=known is not None)


def _read(cursor: str) -> tuple[Kind, str]:
    kind, colon, key = cursor.partition(":")
    number = key.partition(":")[0]
    if kind in _ORDER and colon and (kind not in _NUMBERED or _is_number(number)):
        return Kind(kind), key
    raise InvalidRequest(
        f"{cursor!r} isn't the cursor of a search", hint="omit it for the first page"
    )


_NUMBERED = (Kind.MODEL, Kind.VERSION)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _in(column: InstrumentedAttribute[str], within: Range) -> Condition:
    return column.between(*within)


def _named(word: Word) -> Condition:
    return _NAME.contains(folded(word.text), autoescape=True)


def _noted(column: InstrumentedAttribute[str | None], word: Word) -> Condition:
    # SQLite's lower() knows ASCII alone.
    return or_(
        func.lower(column).contains(word.text.lower(), autoescape=True),
        column.contains(word.text, autoescape=True),
    )


def _since(terms: Terms, column: InstrumentedAttribute[datetime]) -> Iterator[Condition]:
    if terms.since is not None:
        yield column >= terms.since
    if terms.until is not None:
        yield column < terms.until


def _since_by_id(terms: Terms, column: InstrumentedAttribute[str]) -> Iterator[Condition]:
    """Ids sort by time."""
    if terms.since is not None:
        yield column >= first_id(max(terms.since, _EPOCH))
    if terms.until is not None:
        yield column < first_id(max(terms.until, _EPOCH))


def _models(
    session: Session, terms: Terms, sought: list[Sought], key: str | None, limit: int
) -> Hits:
    name = folded(terms.words[0].text) if terms.words else ""
    begins = _NAME.startswith(name, autoescape=True)
    rank = case((_NAME.in_([name]), 0), (begins, 1), else_=2)
    statement = (
        select(Model, rank.label("rank"))
        .where(
            select(Version.id).where(Version.model_id == Model.id, IS_KEPT).exists(),
            *(or_(_named(one.word), _noted(Model.note, one.word)) for one in sought),
            *labels.matching(Model, terms.labels),
            *_since(terms, Model.created_at),
        )
        .order_by(rank, Model.name)
        .limit(limit)
    )
    if key is not None:
        place, _, last = key.partition(":")
        after = and_(rank == int(place), Model.name > last)
        statement = statement.where(or_(rank > int(place), after))
    rows = session.execute(statement).all()
    of = labels.of(session, Model, [row.id for row, _ in rows])
    return [
        (
            f"model:{place}:{row.name}",
            Hit(
                kind=Kind.MODEL,
                id=row.name,
                model=row.name,
                version=None,
                about="",
                digest=None,
                labels=of[row.id],
                note=row.note,
                created_at=row.created_at,
            ),
        )
        for row, place in rows
    ]


def _of_models(word: Word) -> Condition:
    return Version.model_id.in_(select(Model.id).where(_named(word)))


def _version_matches(one: Sought) -> Condition:
    found = [_noted(Version.note, one.word)]
    if one.is_name:
        found.append(_of_models(one.word))
    if one.word.digest is not None:
        found.append(_in(Version.source_digest, one.word.digest))
    return or_(*found)


def _versions(
    session: Session, terms: Terms, sought: list[Sought], key: str | None, limit: int
) -> Hits:
    statement = (
        select(Version, Model.name)
        .join(Model, Model.id == Version.model_id)
        .where(
            IS_KEPT,
            *map(_version_matches, sought),
            *labels.matching(Version, terms.labels),
            *_since(terms, Version.created_at),
        )
        .order_by(Version.id.desc())
        .limit(limit)
    )
    if key is not None:
        statement = statement.where(Version.id < int(key))
    rows = session.execute(statement).all()
    of = labels.of(session, Version, [row.id for row, _ in rows])
    return [
        (
            f"version:{row.id}",
            Hit(
                kind=Kind.VERSION,
                id=f"{model}@{row.number}",
                model=model,
                version=row.number,
                about=row.source_format,
                digest=row.source_digest,
                labels=of[row.id],
                note=row.note,
                created_at=row.created_at,
            ),
        )
        for row, model in rows
    ]


def _engine_matches(one: Sought) -> list[Condition]:
    found: list[Condition] = []
    if one.is_name:
        found.append(EngineRow.version_id.in_(select(Version.id).where(_of_models(one.word))))
    if one.word.digest is not None:
        found.append(_in(EngineRow.digest, one.word.digest))
    if one.word.id is not None:
        found.append(_in(EngineRow.id, one.word.id))
    return found


def _engines(
    session: Session, terms: Terms, sought: list[Sought], key: str | None, limit: int
) -> Hits:
    statement = select(
        EngineRow.id,
        EngineRow.version_id,
        EngineRow.precision,
        EngineRow.runtime,
        EngineRow.gpu,
        EngineRow.digest,
        EngineRow.created_at,
    ).where(*labels.matching(Version, terms.labels, EngineRow.version_id))
    rows = _newest(
        session, statement, EngineRow.id, terms, map(_engine_matches, sought), key, limit
    )
    of = labels.of(session, Version, {row.version_id for row in rows})
    found = [
        (row, f"{row.precision} for {row.runtime}:{row.gpu}", row.digest, of[row.version_id])
        for row in rows
    ]
    return _by_id(session, Kind.ENGINE, found)


def _build_matches(one: Sought) -> list[Condition]:
    found: list[Condition] = []
    if one.is_name:
        found.append(Build.version_id.in_(select(Version.id).where(_of_models(one.word))))
    if one.word.id is not None:
        found.append(_in(Build.id, one.word.id))
    if one.word.digest is not None and one.is_file:
        given = (
            Build.request[role.value]["digest"].as_string()
            for role in (Role.CALIBRATION, Role.EVALUATION)
        )
        found += [digest.between(*one.word.digest) for digest in given]
    return found


def _builds(
    session: Session, terms: Terms, sought: list[Sought], key: str | None, limit: int
) -> Hits:
    statement = select(
        Build.id,
        Build.version_id,
        Build.state,
        Build.request["targets"].label("targets"),
        Build.created_at,
    ).where(*labels.matching(Build, terms.labels))
    rows = _newest(session, statement, Build.id, terms, map(_build_matches, sought), key, limit)
    of = labels.of(session, Build, [row.id for row in rows])
    found = [(row, f"{row.state}, for {', '.join(row.targets)}", None, of[row.id]) for row in rows]
    return _by_id(session, Kind.BUILD, found)


def _by_id(
    session: Session,
    kind: Kind,
    found: Sequence[tuple[Any, str, str | None, Mapping[str, str]]],
) -> Hits:
    """The hits of what has an id and a version.

    Parameters:
        found: rows, each with what it is in words, its digest and its labels.
    """
    names = _names(session, {row.version_id for row, *_ in found})
    return [
        (
            f"{kind}:{row.id}",
            Hit(
                kind=kind,
                id=row.id,
                model=names[row.version_id][0],
                version=names[row.version_id][1],
                about=about,
                digest=digest,
                labels=dict(labelled),
                note=None,
                created_at=row.created_at,
            ),
        )
        for row, about, digest, labelled in found
    ]


def _newest(
    session: Session,
    statement: Select[*tuple[Any, ...]],
    id: InstrumentedAttribute[str],
    terms: Terms,
    matches: Iterator[list[Condition]],
    key: str | None,
    limit: int,
) -> list[Any]:
    """The newest rows that match each word in some way."""
    for ways in matches:
        if not ways:
            return []
        statement = statement.where(or_(*ways))
    statement = statement.where(*_since_by_id(terms, id)).order_by(id.desc()).limit(limit)
    if key is not None:
        statement = statement.where(id < key)
    return list(session.execute(statement).all())


def _names(session: Session, version_ids: set[int]) -> dict[int, tuple[str, int]]:
    """The model's name and the version's number."""
    rows = session.execute(
        select(Version.id, Model.name, Version.number)
        .join(Model, Model.id == Version.model_id)
        .where(Version.id.in_(version_ids))
    )
    return {version_id: (name, number) for version_id, name, number in rows}


_FINDERS: Mapping[Kind, Callable[[Session, Terms, list[Sought], str | None, int], Hits]] = {
    Kind.MODEL: _models,
    Kind.VERSION: _versions,
    Kind.ENGINE: _engines,
    Kind.BUILD: _builds,
}
