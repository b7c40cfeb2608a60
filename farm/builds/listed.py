"""Models as a list shows them: the newest version, what ``prod`` names, the engines' GPUs, the last build."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from farm.builds import views
from farm.database.tables import IS_KEPT, AliasRow, Build, EngineRow, Model, Version
from farm.registry import labels, models
from farm.schemas.builds import BuildSummary
from farm.specs import texts
from farm.specs.references import PROD


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A model.

    Parameters:
        prod: the version that ``prod`` names.
        targets: what it has engines for, in any version.
        last_build: None if its builds are of deleted versions.
    """

    name: str
    labels: dict[str, str]
    note: str | None
    newest: int
    versions: int
    prod: int | None
    targets: Sequence[str]
    last_build: BuildSummary | None


def listed(
    session: Session,
    *,
    name: str | None = None,
    label: Sequence[str] = (),
    after: str | None = None,
    limit: int,
) -> list[Listed]:
    """Models by name, in a fixed number of queries.

    Parameters:
        name: only those that have this in their name, in any case.
        label: as in ``farm.registry.models.models``.
        after: the name of the last model of the previous page.
    """
    rows = session.scalars(models.select_models(name=name, label=label, after=after, limit=limit))
    found = {row.id: row for row in rows}
    is_theirs = Version.model_id.in_(found)
    versions, prod = _versions(session, is_theirs), _prod(session, is_theirs)
    targets, builds = _targets(session, is_theirs), _last_builds(session, is_theirs)
    of = labels.of(session, Model, list(found))
    return [
        Listed(
            name=row.name,
            labels=texts.escaped(of[model_id]),
            note=texts.escaped(row.note),
            newest=versions[model_id][0],
            versions=versions[model_id][1],
            prod=prod.get(model_id),
            targets=targets.get(model_id, ()),
            last_build=builds.get(model_id),
        )
        for model_id, row in found.items()
    ]


def _versions(session: Session, is_theirs: ColumnElement[bool]) -> dict[int, tuple[int, int]]:
    """The newest version of each model, and how many it has."""
    rows = session.execute(
        select(Version.model_id, func.max(Version.number), func.count())
        .where(is_theirs, IS_KEPT)
        .group_by(Version.model_id)
    )
    return {model_id: (newest, count) for model_id, newest, count in rows}


def _prod(session: Session, is_theirs: ColumnElement[bool]) -> dict[int, int]:
    rows = session.execute(
        select(Version.model_id, Version.number)
        .join(AliasRow, AliasRow.version_id == Version.id)
        .where(is_theirs, AliasRow.name == PROD)
    )
    return dict(rows.tuples().all())


def _targets(session: Session, is_theirs: ColumnElement[bool]) -> dict[int, list[str]]:
    rows = session.execute(
        select(Version.model_id, EngineRow.gpu)
        .join(Version, Version.id == EngineRow.version_id)
        .where(is_theirs, IS_KEPT)
        .distinct()
        .order_by(EngineRow.gpu)
    )
    found: defaultdict[int, list[str]] = defaultdict(list)
    for model_id, gpu in rows:
        found[model_id].append(gpu)
    return found


def _last_builds(session: Session, is_theirs: ColumnElement[bool]) -> dict[int, BuildSummary]:
    rows = session.execute(
        select(Version.model_id, func.max(Build.id))
        .join(Version, Version.id == Build.version_id)
        .where(is_theirs, IS_KEPT)
        .group_by(Version.model_id)
    )
    of = {build_id: model_id for model_id, build_id in rows}
    builds = session.scalars(select(Build).where(Build.id.in_(of))).all()
    return {of[one.id]: one for one in views.summaries(session, builds)}
