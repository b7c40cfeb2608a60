"""Models and their versions, as the API returns them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import IS_KEPT, EngineRow, Model, Version, Yank
from farm.registry import aliases, catalog, names
from farm.registry.rows import IS_YANKED, count_engines
from farm.registry.versions import given_or_newest
from farm.schemas.models import ModelDetail, ModelView, VersionView


def models(session: Session, *, after: str | None = None, limit: int = 50) -> list[ModelView]:
    has_version = select(Version.id).where(Version.model_id == Model.id, IS_KEPT).exists()
    statement = select(Model).where(has_version).order_by(Model.name).limit(limit)
    if after is not None:
        statement = statement.where(Model.name > after)
    return [_model(session, row) for row in session.scalars(statement)]


def _model(session: Session, row: Model) -> ModelView:
    versions = _versions(session, row.id)
    return ModelView(
        name=row.name,
        created_at=row.created_at,
        versions=[version.version for version in versions],
        engines=sum(version.engines for version in versions),
    )


def model(session: Session, name: str) -> ModelDetail:
    """A model with its versions and its newest version's engines.

    Raises:
        NotFound, NameAmbiguous
    """
    known = names.named(session, name)
    row, _ = session.get_one(Model, known.id), given_or_newest(session, known, None)
    versions = _versions(session, row.id)
    return ModelDetail(
        name=row.name,
        created_at=row.created_at,
        aliases=aliases.all_of(session, row.name),
        versions=versions,
        engines=catalog.engines(session, row.name, version=versions[-1].version, limit=200),
    )


def _versions(session: Session, model_id: int) -> list[VersionView]:
    rows = session.execute(
        select(Version, count_engines(), Yank.reason)
        .outerjoin(EngineRow, EngineRow.version_id == Version.id)
        .outerjoin(Yank, IS_YANKED)
        .where(Version.model_id == model_id, IS_KEPT)
        .group_by(Version.id, Yank.reason)
        .order_by(Version.number)
    )
    return [
        VersionView(
            version=version.number,
            source_digest=version.source_digest,
            source_format=version.source_format,
            fixed_inputs=version.fixed_inputs or {},
            architecture=version.architecture,
            engines=engines,
            yanked=yanked,
            created_at=version.created_at,
        )
        for version, engines, yanked in rows
    ]
