"""Rows of the registry as answers have them: one view an engine, however often it was judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Select, String, cast, func, select

from farm.database.tables import Artifact, EngineRow, Model, Version
from farm.registry import judgements
from farm.reports import extent, kept
from farm.schemas.engines import EngineView
from farm.specs.states import EngineState

#: By which judgements of one engine are told from other engines; of older rows it is the build job.
SAME = func.coalesce(EngineRow.io["same"].as_string(), cast(EngineRow.build_job_id, String))


def count_engines() -> ColumnElement[int]:
    """How many engines there are, however often each was judged."""
    return func.count(SAME.distinct())


def select_rows() -> Select[*tuple[Any, ...]]:
    return (
        select(
            EngineRow,
            Model.name,
            Version.number,
            Version.source_digest,
            Version.fixed_inputs,
            Artifact.bytes,
        )
        .join(Version, Version.id == EngineRow.version_id)
        .join(Model, Model.id == Version.model_id)
        .join(Artifact, Artifact.digest == EngineRow.digest)
    )


def view_of(row: Any) -> EngineView:
    engine = row[0]
    recorded = {name: getattr(engine, name) for name in _FROM_STAGES}
    if kept.is_readable(recorded["accuracy"], recorded["metrics"]) and extent.fits(engine.io):
        try:
            return _shown(row, **recorded, doubts=engine.doubts or [], **engine.io)
        except (ValidationError, TypeError):
            pass
    # An earlier farm took whatever a stage's process sent. One row mustn't keep others from being shown.
    return _shown(row, **_UNREADABLE)


def _shown(row: Any, **recorded: Any) -> EngineView:
    engine, model, version, source_digest, fixed_inputs, size = row
    columns = {name: getattr(engine, name) for name in _COLUMNS}
    return EngineView(
        **columns,
        **recorded,
        model=model,
        version=version,
        source_digest=source_digest,
        fixed_inputs=fixed_inputs or {},
        bytes=size,
        build=engine.build_id,
    )


_COLUMNS = "id runtime runtime_version gpu precision prune digest toolchain created_at".split()


#: What its stages have said of it.
_FROM_STAGES = "accuracy metrics metrics_reason state".split()


_UNREADABLE: Mapping[str, Any] = {
    "accuracy": {},
    "metrics": None,
    "metrics_reason": "its stored record can't be read",
    "state": EngineState.DOUBTFUL,
    "doubts": ["its stored record can't be read: no stage of the farm writes this"],
    "profiles": [],
    "inputs": [],
    "outputs": [],
}


def identity(row: EngineRow) -> str:
    return row.io.get("same") or str(row.build_job_id)


def grouped(rows: Iterable[Any]) -> list[EngineView]:
    """One view an engine, its other judgements beneath; that which was published last first."""
    groups: defaultdict[tuple[int, str], list[EngineView]] = defaultdict(list)
    for row in rows:
        groups[row[0].version_id, identity(row[0])].append(view_of(row))
    newest = sorted(groups.values(), key=lambda views: min(v.id for v in views), reverse=True)
    ranked = [judgements.ranked(views) for views in newest]
    return [judgements.beneath(best, rest) for best, *rest in ranked]
