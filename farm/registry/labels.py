"""Labels and notes of models and versions, and labels of builds: what people say of them, at any time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from farm.database.tables import Build, Label, Model, Version
from farm.errors import InvalidRequest
from farm.registry import names, versions
from farm.schemas.labels import MOST_LABELS, DescriptionChanges

Subject = type[Model] | type[Version] | type[Build]
_COLUMNS: Mapping[Subject, InstrumentedAttribute[int | None] | InstrumentedAttribute[str | None]]
_COLUMNS = {Model: Label.model_id, Version: Label.version_id, Build: Label.build_id}


def of(
    session: Session, subject: Subject, ids: Collection[int | str]
) -> dict[int | str, dict[str, str]]:
    """The labels of several models, versions or builds, by their keys."""
    column = _COLUMNS[subject]
    found: defaultdict[Any, dict[str, str]] = defaultdict(dict)
    rows = session.execute(
        select(column, Label.key, Label.value).where(column.in_(list(ids))).order_by(Label.key)
    )
    for owner, key, value in rows:
        found[owner][key] = value
    return found


def has(
    subject: Subject, label: str, id: InstrumentedAttribute[Any] | None = None
) -> ColumnElement[bool]:
    """Whether something has a label: ``team=vision``, or ``team`` for any value.

    Parameters:
        id: where its id is found; by default in its own row.
    """
    key, equals, value = label.partition("=")
    column = _COLUMNS[subject]
    owners = select(column).where(Label.key == key, column.is_not(None))
    if equals:
        owners = owners.where(Label.value == value)
    return (subject.id if id is None else id).in_(owners)


def matching(
    subject: Subject, labels: Iterable[str], id: InstrumentedAttribute[Any] | None = None
) -> list[ColumnElement[bool]]:
    """The conditions for all of these labels, each as in ``has``."""
    return [has(subject, label, id) for label in labels]


def keep(session: Session, subject: Subject, owner: int | str, labels: Mapping[str, str]) -> None:
    """Set labels beside those that there are.

    Raises:
        InvalidRequest: there would be too many.
    """
    if labels:
        _change(session, subject, owner, labels)


def describe_model(session: Session, model: str, changes: DescriptionChanges) -> bool:
    """Change a model's labels and note. Return whether that changed anything.

    Raises:
        NotFound, NameAmbiguous, InvalidRequest
    """
    row = session.get_one(Model, names.named(session, model).id, with_for_update=True)
    return _describe(session, row, changes)


def describe_version(
    session: Session, model: str, number: int, changes: DescriptionChanges
) -> bool:
    """Change a version's labels and note. Return whether that changed anything.

    Raises:
        NotFound, NameAmbiguous, InvalidRequest
    """
    version_id = versions.version_id(session, names.named(session, model), number)
    row = session.get_one(Version, version_id, with_for_update=True)
    return _describe(session, row, changes)


def _describe(session: Session, row: Model | Version, changes: DescriptionChanges) -> bool:
    changed = _change(session, type(row), row.id, changes.labels)
    if "note" in changes.model_fields_set and (changes.note or None) != row.note:
        row.note, changed = changes.note or None, True
        session.flush()
    return changed


def _change(
    session: Session, subject: Subject, owner: int | str, changes: Mapping[str, str | None]
) -> bool:
    column = _COLUMNS[subject]
    before = of(session, subject, [owner])[owner]
    after = {key: value for key, value in {**before, **changes}.items() if value is not None}
    if len(after) > MOST_LABELS:
        raise InvalidRequest(
            f"it would have {len(after)} labels; the limit is {MOST_LABELS}",
            hint="remove some: farm label MODEL@VERSION KEY-",
        )
    gone = [key for key in before if after.get(key) != before[key]]
    new = {key: value for key, value in after.items() if before.get(key) != value}
    if gone:
        session.execute(delete(Label).where(column == owner, Label.key.in_(gone)))
    if new:
        rows = [{column.key: owner, "key": key, "value": value} for key, value in new.items()]
        session.execute(insert(Label), rows)
    return bool(gone or new)
