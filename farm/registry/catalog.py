"""Engines, by id and by model."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from farm.database.tables import Artifact, EngineRow, Version
from farm.errors import NotFound
from farm.registry import judgements, names, quantised
from farm.registry.names import Named
from farm.registry.rows import NOT_YANKED, SAME, grouped, identity, select_rows, view_of
from farm.registry.twins import beside_twins
from farm.schemas.engines import EngineView
from farm.specs import gpus
from farm.specs.options import Prune
from farm.specs.runtime import Runtime


def engine(session: Session, engine_id: str) -> EngineView:
    """A row of the registry, with its engine's other judgements.

    Raises:
        NotFound
    """
    row = engine_row(session, engine_id)
    same = select_rows().where(EngineRow.version_id == row.version_id, SAME.in_([identity(row)]))
    views = [view_of(one) for one in session.execute(same)]
    [asked] = [view for view in views if view.id == engine_id]
    [found] = completed(session, [judgements.beneath(asked, views)])
    return found


def engine_row(session: Session, engine_id: str) -> EngineRow:
    """An engine's row.

    Raises:
        NotFound
    """
    row = session.get(EngineRow, engine_id)
    if row is None:
        raise NotFound(f"there is no engine {engine_id!r}", hint="`farm engines MODEL` lists them")
    return row


def engines(
    session: Session,
    model: str,
    *,
    gpu: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    version: int | None = None,
    prune: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[EngineView]:
    """A model's engines, most recently published first.

    An engine that was judged several times appears once, with its best-founded judgement.

    Parameters:
        before: the id of a row; returns engines published before that row's.
        prune: ``2:4``, ``l1:0.5``, or ``none`` for unpruned engines.

    Raises:
        NotFound: the model doesn't exist.
        NameAmbiguous, UnknownGpu, InvalidRequest
    """
    found = find(
        session,
        names.named(session, model),
        gpu=gpu,
        precision=precision,
        runtime=runtime,
        version=version,
        prune=prune,
        before=before,
        limit=limit,
    )
    return completed(session, found)


def completed(session: Session, views: Sequence[EngineView]) -> list[EngineView]:
    """The same engines, with what isn't in their own rows: their twins, and how they were quantised."""
    return quantised.with_briefs(session, beside_twins(session, views))


def find(
    session: Session,
    model: Named,
    *,
    gpu: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    version: int | None = None,
    prune: str | None = None,
    before: str | None = None,
    only_whole: bool = False,
    yanked: bool = True,
    limit: int,
) -> list[EngineView]:
    """Engines as their rows say, newest first: whoever shows them has them ``completed``.

    Parameters:
        only_whole: leave out those whose bytes the store has lost.
        yanked: whether to include those that were yanked by themselves.
    """
    statement = (
        select(EngineRow.id, EngineRow.version_id, SAME.label("same"))
        .join(Version, Version.id == EngineRow.version_id)
        .where(Version.model_id == model.id)
    )
    if gpu is not None:
        statement = statement.where(serves(gpus.canonical(gpu)))
    if precision is not None:
        statement = statement.where(EngineRow.precision == precision)
    if runtime is not None:
        statement = statement.where(EngineRow.runtime == runtime)
    if version is not None:
        statement = statement.where(Version.number == version)
    if prune is not None:
        wanted = None if prune == UNPRUNED else str(Prune.parse(prune))
        statement = statement.where(EngineRow.prune.is_not_distinct_from(wanted))
    row = statement.subquery()
    first = func.min(row.c.id)
    groups = select(row.c.version_id, row.c.same).group_by(row.c.version_id, row.c.same)
    if before is not None:
        groups = groups.having(first < _published(session, before))
    page = groups.order_by(first.desc()).limit(limit).subquery()
    same = and_(page.c.version_id == EngineRow.version_id, page.c.same == SAME)
    rows = select_rows().join(page, same)
    if only_whole:
        rows = rows.where(Artifact.lost_at.is_(None))
    if not yanked:
        rows = rows.where(NOT_YANKED)
    return grouped(session.execute(rows))


def serves(tag: str) -> ColumnElement[bool]:
    """Whether an engine may be for a GPU; ``farm.specs.reach`` says whether it is, and how closely."""
    level = EngineRow.description["options"]["hardware_compatibility_level"].as_string()
    is_portable = and_(EngineRow.runtime == Runtime.TENSORRT, level != "none")
    return or_(EngineRow.gpu.in_({tag, gpus.compute_capability(tag)}), is_portable)


def _published(session: Session, engine_id: str) -> str:
    """The id of the first row of this row's engine."""
    row = session.get(EngineRow, engine_id)
    if row is None:
        return engine_id
    same = select(func.min(EngineRow.id)).where(
        EngineRow.version_id == row.version_id, SAME.in_([identity(row)])
    )
    return session.scalar(same) or engine_id


UNPRUNED = "none"
