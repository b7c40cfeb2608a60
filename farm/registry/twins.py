"""Compares compressed engines with their uncompressed twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import EngineRow
from farm.registry import latencies
from farm.registry.rows import grouped, select_rows
from farm.reports.accuracy import task_drop
from farm.schemas.engines import Comparison, EngineView
from farm.specs.precision import QUANTIZED, Precision

#: A quantised engine is compared with the first of these that exists.
_WIDER = (Precision.FP16, Precision.FP32)


def beside_twins(session: Session, views: Sequence[EngineView]) -> list[EngineView]:
    """The same engines, with compressed ones compared to their newest uncompressed twins.

    A pruned engine's twin is the unpruned one of the same precision, a quantised one's has a wider type.
    """
    ids = [view.id for view in views if _twin_precisions(view)]
    versions = select(EngineRow.version_id).where(EngineRow.id.in_(ids))
    unpruned = select_rows().where(EngineRow.version_id.in_(versions), EngineRow.prune.is_(None))
    twins = {
        (_twin_key(view), view.precision): view
        for view in reversed(grouped(session.execute(unpruned)) if ids else [])
    }
    return [
        view.model_copy(update={"against": _against(view, twins)}) if view.id in ids else view
        for view in views
    ]


def _twin_precisions(view: EngineView) -> Sequence[Precision]:
    if view.prune:
        return (view.precision,)
    return _WIDER if view.precision in QUANTIZED else ()


def _twin_key(view: EngineView) -> tuple[Any, ...]:
    options = view.options
    if view.prune and options:
        # The plan sets this option for weights pruned for it: it belongs to the pruning.
        options = options.model_copy(update={"sparse_weights": False})
    return view.model, view.version, view.runtime, view.gpu, str((view.profiles, options))


def _against(
    view: EngineView, twins: Mapping[tuple[Any, Precision], EngineView]
) -> Comparison | None:
    for precision in _twin_precisions(view):
        twin = twins.get((_twin_key(view), precision))
        if twin is not None:
            latency_ratio, no_latency = latencies.ratio(view.metrics, twin.metrics)
            return Comparison(
                engine=twin.id,
                precision=precision,
                size_ratio=round(view.bytes / twin.bytes, 4),
                latency_ratio=latency_ratio,
                latency_reason=no_latency,
                task_drop=task_drop(view.accuracy.task, twin.accuracy.task)
                if _same_task(view, twin)
                else None,
                agreement_drop=_drop(view.accuracy.top1_agreement, twin.accuracy.top1_agreement)
                if _same_data(view, twin)
                else None,
            )
    return None


def _same_data(view: EngineView, twin: EngineView) -> bool:
    """Whether two judgements used the same kind and number of samples."""
    return (view.accuracy.data, view.accuracy.samples) == (
        twin.accuracy.data,
        twin.accuracy.samples,
    )


def _same_task(view: EngineView, twin: EngineView) -> bool:
    """Whether the source scored the same in both judgements, as it does on the same labels."""
    task, other = view.accuracy.task, twin.accuracy.task
    return (
        task is not None
        and other is not None
        and (task.metric, task.source)
        == (
            other.metric,
            other.source,
        )
    )


def _drop(value: float | None, of_twin: float | None) -> float | None:
    return None if value is None or of_twin is None else round(of_twin - value, 4)
