"""Turns rows of the registry into views: one per engine, however often it was judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Select, String, and_, cast, func, select
from sqlalchemy.orm import aliased

from farm.database.tables import Artifact, EngineRow, Model, Version, Yank
from farm.registry import judgements
from farm.reports import kept
from farm.reports.accuracy import Accuracy
from farm.reports.description import Description
from farm.reports.kept import EngineRecord
from farm.schemas.engines import EngineView
from farm.specs.states import EngineState

#: Groups the judgements of one engine; for older rows, the build job.
SAME = func.coalesce(
    EngineRow.description["same"].as_string(), cast(EngineRow.build_job_id, String)
)


#: Joins a version with its own yank.
IS_YANKED = and_(Yank.version_id == Version.id, Yank.same == "")
_OF_ENGINE, _OF_VERSION = aliased(Yank), aliased(Yank)
#: Why an engine was yanked, by itself or with its version.
YANKED = func.coalesce(_OF_ENGINE.reason, _OF_VERSION.reason)
#: Whether an engine wasn't yanked by itself.
NOT_YANKED = _OF_ENGINE.version_id.is_(None)


def with_yanks(rows: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """A selection of ``EngineRow`` that can have ``YANKED``."""
    of_engine = and_(_OF_ENGINE.version_id == EngineRow.version_id, _OF_ENGINE.same == SAME)
    of_version = and_(_OF_VERSION.version_id == EngineRow.version_id, _OF_VERSION.same == "")
    return rows.outerjoin(_OF_ENGINE, of_engine).outerjoin(_OF_VERSION, of_version)


def count_engines() -> ColumnElement[int]:
    """The number of engines, counting each once however often it was judged."""
    return func.count(SAME.distinct())


def select_rows() -> Select[*tuple[Any, ...]]:
    rows = (
        select(
            EngineRow,
            Model.name,
            Version.number,
            Version.source_digest,
            Version.fixed_inputs,
            Artifact.bytes,
            YANKED,
        )
        .join(Version, Version.id == EngineRow.version_id)
        .join(Model, Model.id == Version.model_id)
        .join(Artifact, Artifact.digest == EngineRow.digest)
    )
    return with_yanks(rows)


def view_of(row: Any) -> EngineView:
    engine: EngineRow = row[0]
    try:
        record = kept.engine_record(
            engine.accuracy, engine.metrics, engine.description, engine.doubts
        )
    except kept.Unreadable:
        # Earlier versions stored anything a stage sent. One bad row mustn't hide the others.
        reason = "its stored record can't be read"
        return _shown(row, _UNREADABLE, reason, EngineState.DOUBTFUL)
    return _shown(row, record, engine.metrics_reason, EngineState(engine.state))


def _shown(
    row: Any, record: EngineRecord, metrics_reason: str | None, state: EngineState
) -> EngineView:
    engine, model, version, source_digest, fixed_inputs, size, yanked = row
    found = record.description
    return EngineView(
        **{name: getattr(engine, name) for name in _COLUMNS},
        metrics_reason=metrics_reason,
        state=state,
        doubts=record.doubts,
        accuracy=record.accuracy,
        metrics=record.metrics,
        compute=found.compute,
        options=found.options,
        timing_cache=found.timing_cache,
        provider=found.provider,
        peak_memory_bytes=found.peak_memory_bytes,
        profiles=found.profiles,
        inputs=found.inputs,
        outputs=found.outputs,
        differences=found.differences,
        model=model,
        version=version,
        source_digest=source_digest,
        fixed_inputs=fixed_inputs or {},
        bytes=size,
        yanked=yanked,
        build=engine.build_id,
    )


_COLUMNS = "id runtime runtime_version gpu precision prune digest toolchain created_at".split()


_UNREADABLE = EngineRecord(
    accuracy=Accuracy(),
    metrics=None,
    description=Description(inputs=[], outputs=[], profiles=[]),
    doubts=["its stored record can't be read: no stage of the farm writes this"],
)


def identity(row: EngineRow) -> str:
    return row.description.get("same") or str(row.build_job_id)


def grouped(rows: Iterable[Any]) -> list[EngineView]:
    """One view per engine with its other judgements beneath, most recently published first."""
    groups: defaultdict[tuple[int, str], list[EngineView]] = defaultdict(list)
    for row in rows:
        groups[row[0].version_id, identity(row[0])].append(view_of(row))
    newest = sorted(groups.values(), key=lambda views: min(v.id for v in views), reverse=True)
    ranked = [judgements.ranked(views) for views in newest]
    return [judgements.beneath(best, rest) for best, *rest in ranked]
