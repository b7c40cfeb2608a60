"""The runtimes with comparable figures of a model on a GPU, which decide where none is named."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import EngineRow, Version
from farm.planning.targets import Measured
from farm.registry import catalog, goals, ranking
from farm.registry.names import Named
from farm.schemas.engines import EngineView
from farm.specs import gpus
from farm.specs.goals import Goal
from farm.specs.precision import Precision
from farm.specs.states import EngineState

_MOST = 1000


def measured(
    session: Session,
    model: Named,
    tag: str,
    precisions: Sequence[Precision],
    prune: str | None = None,
) -> Sequence[Measured]:
    """A model's runtimes on a GPU, the best first; empty unless several have comparable figures.

    Of engines that passed their gates, in the newest version where they can be compared, by the goal kept
    for it.

    Parameters:
        tag: canonical.
        precisions: the engines' precisions that count.
        prune: how the engines that count are pruned; by default unpruned.
    """
    if not _several(session, model.id, tag):
        return ()
    found = catalog.find(session, model, gpu=tag, prune=prune or catalog.UNPRUNED, limit=_MOST)
    good = [
        one
        for one in found
        if one.precision in precisions and one.state is EngineState.READY and one.yanked is None
    ]
    for version in sorted({one.version for one in good}, reverse=True):
        goal = goals.kept(session, model.id, version, tag) or Goal()
        ranked = ranking.rank([one for one in good if one.version == version], tag, goal)
        first = _first_of_each(ranked.chosen_from)
        if ranked.compared and len(first) > 1:
            return [_measured(one, ranked) for one in first]
    return ()


def _several(session: Session, model_id: int, tag: str) -> bool:
    """Whether engines of several runtimes were measured, without reading them: seldom so, often asked."""
    runtimes = session.scalars(
        select(EngineRow.runtime)
        .join(Version, Version.id == EngineRow.version_id)
        .where(
            Version.model_id == model_id,
            EngineRow.gpu.in_({tag, gpus.compute_capability(tag)}),
            EngineRow.metrics.is_not(None),
        )
        .distinct()
    )
    return len(runtimes.all()) > 1


def _first_of_each(engines: Sequence[EngineView]) -> list[EngineView]:
    """Each runtime's best engine."""
    found: dict[str, EngineView] = {}
    for engine in engines:
        found.setdefault(engine.runtime, engine)
    return list(found.values())


def _measured(engine: EngineView, ranked: ranking.Ranking) -> Measured:
    first = ranked.best
    if engine.id == first.id:
        return Measured(
            runtime=engine.runtime,
            why=f"measured of version {engine.version}: {ranking.reason(ranked)}",
        )
    return Measured(
        runtime=engine.runtime,
        why=f"measured of version {engine.version} as the next best after {first.runtime}",
    )
