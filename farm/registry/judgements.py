"""The judgements of one engine: each time that its model is submitted again, with whatever data.

The best founded judgement speaks for it, the others stand beneath: an engine that was judged by labels isn't
hidden by a resubmission without any. Each has its own row and bytes, for which it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from farm.reports.accuracy import Accuracy
from farm.schemas.engines import EngineView, Judgement

#: By the start of what ``accuracy`` says of its data; the first are the best founded.
_KINDS = ("evaluation", "held", "calibration", "random")


def foundation(accuracy: Accuracy) -> int:
    """How well founded a judgement is: labelled data, evaluation data, calibration data, random."""
    if accuracy.task:
        return 0
    data = accuracy.data or ""
    known = (rank for rank, kind in enumerate(_KINDS, start=1) if data.startswith(kind))
    return next(known, len(_KINDS) + 1)


def ranked(views: Iterable[EngineView]) -> list[EngineView]:
    """Judgements of one engine, the best founded first, of equals the newest."""
    newest = sorted(views, key=lambda view: view.id, reverse=True)
    return sorted(newest, key=lambda view: foundation(view.accuracy))


def beneath(view: EngineView, others: Sequence[EngineView]) -> EngineView:
    """A judgement with the others of its engine beneath it."""
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
