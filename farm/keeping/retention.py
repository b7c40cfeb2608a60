"""Finds what the rules of retention let go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from farm.database import upserts
from farm.database.base import now
from farm.database.tables import (
    IS_KEPT,
    AliasMove,
    AliasRow,
    Build,
    BuildJob,
    EnginePull,
    EngineRow,
    Job,
    Model,
    RetentionRow,
    Version,
)
from farm.keeping import going
from farm.registry import names
from farm.registry.names import Named
from farm.registry.rows import identity
from farm.schemas.retention import KeptVersion, RetentionView
from farm.specs import durations
from farm.specs.retention import Retention
from farm.specs.states import BUILD_LIVE, JobState

_MOST_WHO = 400
_DAY_S = 86400


@dataclass(frozen=True, kw_only=True)
class Due:
    """What a rule lets go of a version: some engines, or its intermediates."""

    model: str
    version: int
    version_id: int
    engines: Sequence[str]  #: empty for the intermediates
    why: str


def view(session: Session, model: str, default: Retention) -> RetentionView:
    """What is kept of a model.

    Raises:
        NotFound, NameAmbiguous
    """
    known = names.named(session, model)
    row = session.get(RetentionRow, known.id)
    rule = _rule(row, default)
    numbers = _numbers(session, known.id)
    kept = _kept(session, known.id, rule)
    return RetentionView(
        model=known.name,
        rule=rule,
        is_default=row is None,
        set_by=row.who if row else None,
        set_at=row.at if row else None,
        kept=[
            KeptVersion(version=number, why=kept[version_id])
            for version_id, number in numbers.items()
            if version_id in kept
        ],
    )


def put(session: Session, model: str, rule: Retention, who: str) -> Named | None:
    """Set a model's own rule; return the model, or None if that was its rule before.

    Raises:
        NotFound, NameAmbiguous
    """
    known = names.named(session, model)
    row = session.get(RetentionRow, known.id)
    if row is not None and row.rule == rule.model_dump():
        return None
    made = {"model_id": known.id, "rule": rule.model_dump(), "who": who[:_MOST_WHO], "at": now()}
    upserts.put(session, RetentionRow, made)
    return known


def reset(session: Session, model: str) -> Named | None:
    """Have the farm's rule hold for a model again; return the model, or None if it did.

    Raises:
        NotFound, NameAmbiguous
    """
    known = names.named(session, model)
    mine = delete(RetentionRow).where(RetentionRow.model_id == known.id)
    gone = session.scalar(mine.returning(RetentionRow.model_id))
    return None if gone is None else known


def due(session: Session, default: Retention, *, at: datetime) -> list[Due]:
    """What the rules let go of all models at this time."""
    rows = {row.model_id: row for row in session.scalars(select(RetentionRow))}
    found = []
    for model_id, name in session.execute(select(Model.id, Model.name).order_by(Model.name)):
        rule = _rule(rows.get(model_id), default)
        if not rule.is_off:
            found += list(_of_model(session, Named(id=model_id, name=name), rule, at))
    return found


def _rule(row: RetentionRow | None, default: Retention) -> Retention:
    return default if row is None else Retention.model_validate(row.rule)


def _numbers(session: Session, model_id: int) -> dict[int, int]:
    """A model's versions, oldest first."""
    rows = session.execute(
        select(Version.id, Version.number)
        .where(Version.model_id == model_id, IS_KEPT)
        .order_by(Version.number)
    )
    return dict(rows.tuples().all())


def _kept(session: Session, model_id: int, rule: Retention) -> Mapping[int, list[str]]:
    """The versions that keep their engines, and why."""
    why: defaultdict[int, list[str]] = defaultdict(list)
    named = session.execute(
        select(AliasRow.name, AliasRow.version_id)
        .where(AliasRow.model_id == model_id, AliasRow.version_id.is_not(None))
        .order_by(AliasRow.name)
    ).all()
    for alias, version_id in named:
        if version_id is not None:
            why[version_id].append(f"{alias} names it")
    for alias, current in named:
        before = session.scalars(
            select(AliasMove.version_id)
            .where(AliasMove.model_id == model_id, AliasMove.name == alias)
            .order_by(AliasMove.revision.desc())
        )
        earlier = dict.fromkeys(one for one in before if one is not None and one != current)
        for version_id in list(earlier)[: rule.history]:
            why[version_id].append(f"{alias} named it")
    numbers = list(_numbers(session, model_id))
    for version_id in numbers[-rule.newest :] if rule.newest else ():
        why[version_id].append(f"among the {rule.newest} newest")
    return why


def _of_model(session: Session, model: Named, rule: Retention, at: datetime) -> Iterator[Due]:
    kept, numbers = _kept(session, model.id, rule), _numbers(session, model.id)
    unpulled: Mapping[int, Sequence[str]] = {}
    idle: Collection[int] = ()
    if rule.engines_days is not None:
        unpulled = _unpulled(session, model.id, kept, at - timedelta(days=rule.engines_days))
    if rule.intermediates_days is not None:
        idle = _with_idle_intermediates(
            session, model.id, at - timedelta(days=rule.intermediates_days)
        )
    running = set(
        session.scalars(
            select(Build.version_id)
            .join(Version, Version.id == Build.version_id)
            .where(Version.model_id == model.id, Build.state.in_(BUILD_LIVE))
        )
    )
    for version_id, number in numbers.items():
        if version_id in running:
            continue
        if rule.engines_days is not None and version_id in unpulled:
            yield Due(
                model=model.name,
                version=number,
                version_id=version_id,
                engines=unpulled[version_id],
                why=f"not pulled for {durations.told(rule.engines_days * _DAY_S)}",
            )
        if rule.intermediates_days is not None and version_id in idle:
            yield Due(
                model=model.name,
                version=number,
                version_id=version_id,
                engines=(),
                why=f"not built for {durations.told(rule.intermediates_days * _DAY_S)}",
            )


def _unpulled(
    session: Session, model_id: int, but: Collection[int], since: datetime
) -> dict[int, list[str]]:
    """Engines of a model's versions but these that were neither published nor pulled since; one id for each
    engine."""
    rows = session.execute(
        select(EngineRow, EnginePull.at)
        .join(Version, Version.id == EngineRow.version_id)
        .outerjoin(EnginePull, EnginePull.engine_id == EngineRow.id)
        .where(Version.model_id == model_id, IS_KEPT, Version.id.not_in(but))
        .order_by(EngineRow.id)
    ).all()
    used: dict[tuple[int, str], datetime] = {}
    first: dict[tuple[int, str], str] = {}
    for row, pulled_at in rows:
        same = (row.version_id, identity(row))
        first.setdefault(same, row.id)
        last = max(row.created_at, pulled_at or row.created_at)
        used[same] = max(last, used.get(same, last))
    found: defaultdict[int, list[str]] = defaultdict(list)
    for same, last in used.items():
        if last < since:
            found[same[0]].append(first[same])
    return found


def _with_idle_intermediates(session: Session, model_id: int, since: datetime) -> set[int]:
    """A model's versions with intermediates and no build since."""
    idle = (
        select(Build.version_id)
        .join(Version, Version.id == Build.version_id)
        .where(Version.model_id == model_id)
        .group_by(Build.version_id)
        .having(func.max(Build.finished_at) < since)
    )
    made = (
        select(BuildJob.build_id)
        .join(Job, Job.id == BuildJob.job_id)
        .where(
            BuildJob.build_id == Build.id,
            Job.state == JobState.SUCCEEDED,
            Job.kind.in_(going.INTERMEDIATE),
        )
    )
    found = select(Build.version_id).where(Build.version_id.in_(idle), made.exists())
    return set(session.scalars(found.distinct()))
