"""Judgements of an engine: one for each time its model is submitted, with any data.

The best-founded judgement represents the engine, the others are listed beneath: resubmitting without labels
doesn't hide an engine that was judged with labels. Each judgement has its own row and its own bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from farm.reports.accuracy import Accuracy
from farm.schemas.engines import EngineView, Judgement

#: Prefixes of the data description in ``accuracy``, best founded first.
_KINDS = ("evaluation", "held", "calibration", "random")


def foundation(accuracy: Accuracy) -> int:
    """How well founded a judgement is: labelled data, evaluation data, calibration data, random."""
    if accuracy.task:
        return 0
    data = accuracy.data or ""
    known = (rank for rank, kind in enumerate(_KINDS, start=1) if data.startswith(kind))
    return next(known, len(_KINDS) + 1)


def ranked(views: Iterable[EngineView]) -> list[EngineView]:
    """An engine's judgements, best founded first, then newest."""
    newest = sorted(views, key=lambda view: view.id, reverse=True)
    return sorted(newest, key=lambda view: foundation(view.accuracy))


def beneath(view: EngineView, others: Sequence[EngineView]) -> EngineView:
    """A judgement with its engine's others beneath it."""
    rest = [judgement(other) for other in ranked(others) if other.id != view.id]
    return view.model_copy(update={"judgements": rest})


def judgement(view: EngineView) -> Judgement:
    return Judgement(
        engine=view.id,
        data=view.accuracy.data,
        labelled=view.accuracy.task is not None,
        samples=view.accuracy.samples,
        state=view.state,
        doubts=view.doubts,
        accuracy=view.accuracy,
        build=view.build,
        created_at=view.created_at,
    )
