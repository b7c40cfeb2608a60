"""Models and their versions, as the API returns them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from farm.database.tables import IS_KEPT, EngineRow, Model, Version, Yank
from farm.registry import aliases, catalog, interfaces, labels, names
from farm.registry.rows import IS_YANKED, count_engines
from farm.registry.versions import given_or_newest
from farm.schemas.models import ModelDetail, ModelView, VersionView
from farm.specs.names import folded


def models(
    session: Session,
    *,
    label: Sequence[str] = (),
    after: str | None = None,
    limit: int = 50,
) -> list[ModelView]:
    """Models by name.

    Parameters:
        label: ``team=vision``, or ``team``: only models that have it, or of which a version has; several
            labels may be of different versions.
    """
    statement = select_models(label=label, after=after, limit=limit)
    rows = session.scalars(statement).all()
    of = labels.of(session, Model, [row.id for row in rows])
    return [_model(session, row, of[row.id]) for row in rows]


def select_models(
    *, name: str | None = None, label: Sequence[str] = (), after: str | None = None, limit: int
) -> Select[Model]:
    """Models that have a version, by name.

    Parameters:
        name: only those that have this in their name, in any case.
        label: as in ``models``.
    """
    has_version = select(Version.id).where(Version.model_id == Model.id, IS_KEPT).exists()
    statement = select(Model).where(has_version).order_by(Model.name).limit(limit)
    if name:
        known = func.coalesce(Model.folded, func.lower(Model.name))
        statement = statement.where(known.contains(folded(name), autoescape=True))
    for one in label:
        versions = select(Version.model_id).where(labels.has(Version, one), IS_KEPT)
        statement = statement.where(or_(labels.has(Model, one), Model.id.in_(versions)))
    if after is not None:
        statement = statement.where(Model.name > after)
    return statement


def _model(session: Session, row: Model, labelled: dict[str, str]) -> ModelView:
    found = versions(session, row.id)
    return ModelView(
        name=row.name,
        created_at=row.created_at,
        labels=labelled,
        note=row.note,
        versions=[version.version for version in found],
        engines=sum(version.engines for version in found),
    )


def model(session: Session, name: str) -> ModelDetail:
    """A model with its versions and its newest version's engines.

    Raises:
        NotFound, NameAmbiguous
    """
    known = names.named(session, name)
    row, _ = session.get_one(Model, known.id), given_or_newest(session, known, None)
    found = versions(session, row.id)
    return ModelDetail(
        name=row.name,
        created_at=row.created_at,
        labels=labels.of(session, Model, [row.id])[row.id],
        note=row.note,
        aliases=aliases.all_of(session, row.name),
        versions=found,
        engines=catalog.engines(session, row.name, version=found[-1].version, limit=200),
    )


def versions(session: Session, model_id: int) -> list[VersionView]:
    """A model's versions by their numbers."""
    rows = session.execute(
        select(Version, count_engines(), Yank.reason)
        .outerjoin(EngineRow, EngineRow.version_id == Version.id)
        .outerjoin(Yank, IS_YANKED)
        .where(Version.model_id == model_id, IS_KEPT)
        .group_by(Version.id, Yank.reason)
        .order_by(Version.number)
    ).all()
    of = labels.of(session, Version, [row[0].id for row in rows])
    return [
        VersionView(
            version=version.number,
            source_digest=version.source_digest,
            source_format=version.source_format,
            fixed_inputs=version.fixed_inputs or {},
            architecture=version.architecture,
            labels=of[version.id],
            note=version.note,
            engines=engines,
            yanked=yanked,
            changes=version.changes or [],
            held_back=interfaces.is_held(version),
            created_at=version.created_at,
        )
        for version, engines, yanked in rows
    ]
