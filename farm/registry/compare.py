"""Compares two versions of a model, by GPU."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Build, EngineRow, Version
from farm.errors import NotFound
from farm.registry import catalog, latencies, names, versions
from farm.registry.match import best_match
from farm.registry.names import Named
from farm.registry.rows import NOT_YANKED, with_yanks
from farm.reports.accuracy import task_drop
from farm.schemas.aliases import Beside
from farm.schemas.compare import Compared, ComparedGpu
from farm.schemas.engines import EngineView
from farm.specs.references import Reference
from farm.specs.states import EngineState


def compared(session: Session, model: str, a: Reference, b: Reference) -> Compared:
    """What a pull gets of each version, for each GPU that either serves.

    Raises:
        NotFound: there is no such model, version or alias.
        NameAmbiguous
    """
    known = names.named(session, model)
    first, second = (versions.taken(session, known, one).number for one in (a, b))
    served = dict.fromkeys([*gpus(session, known, first), *gpus(session, known, second)])
    return Compared(
        model=known.name,
        a=first,
        b=second,
        gpus=[_of_gpu(session, known, gpu, first, second) for gpu in served],
    )


def _of_gpu(session: Session, model: Named, gpu: str, first: int, second: int) -> ComparedGpu:
    old, new = (engine(session, model, gpu, number) for number in (first, second))
    found = beside(session, gpu, new, old) if old and new else None
    return ComparedGpu(
        gpu=gpu,
        a=old,
        b=new,
        size_ratio=round(new.bytes / old.bytes, 4) if old and new else None,
        latency_ratio=found and found.latency_ratio,
        latency_reason=found and found.latency_reason,
        task_drop=found and found.task_drop,
        task_reason=found and found.task_reason,
    )


def gpus(session: Session, model: Named, number: int) -> Sequence[str]:
    """The GPUs that a version has engines for which passed their gates and weren't yanked by themselves."""
    found = (
        select(EngineRow.gpu)
        .join(Version, Version.id == EngineRow.version_id)
        .where(
            Version.model_id == model.id,
            Version.number == number,
            EngineRow.state == EngineState.READY,
            NOT_YANKED,
        )
        .distinct()
        .order_by(EngineRow.gpu)
    )
    return session.scalars(with_yanks(found)).all()


def engine(session: Session, model: Named, gpu: str, version: int | None) -> EngineView | None:
    """What a pull for this GPU gets of the version."""
    try:
        return best_match(session, model.name, gpu, version=version).engine
    except NotFound:
        return None


def why_none(session: Session, model: Named, gpu: str, version: int) -> str:
    for one in catalog.find(session, model, gpu=gpu, version=version, limit=1):
        if one.yanked:
            return f"its engine was yanked: {one.yanked}"
        return f"its engine failed a gate: {'; '.join(one.doubts)}"
    return "it has no engine"


def beside(session: Session, gpu: str, new: EngineView, old: EngineView | None) -> Beside:
    if old is None:
        return Beside(gpu=gpu, engine=new.id, what=_what(new), replaces=None)
    ratio, no_ratio = latencies.ratio(new.metrics, old.metrics)
    drop, no_drop = _task_drop(session, new, old)
    return Beside(
        gpu=gpu,
        engine=new.id,
        what=_what(new),
        replaces=old.id,
        latency_ratio=ratio,
        latency_reason=no_ratio,
        task_drop=drop,
        task_reason=no_drop,
    )


def _what(engine: EngineView) -> str:
    return f"{engine.precision} by {engine.runtime}"


def _task_drop(
    session: Session, new: EngineView, old: EngineView
) -> tuple[float | None, str | None]:
    """The drop of the metric on the same evaluation data, or None and the reason."""
    task, before = new.accuracy.task, old.accuracy.task
    if task is None and before is None:
        return None, "neither was evaluated with labels"
    if task is None or before is None:
        return None, "only one of them was evaluated with labels"
    if (task.metric, _data(session, new)) != (before.metric, _data(session, old)):
        return None, "they were evaluated on different data"
    drop = task_drop(task, before)
    return drop, None if drop is not None else "the other's error is 0"


def _data(session: Session, engine: EngineView) -> object:
    request = session.scalar(select(Build.request).where(Build.id == engine.build)) or {}
    return (request.get("evaluation") or {}).get("digest")
