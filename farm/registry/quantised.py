"""What is known of how engines were quantised, and why the rest isn't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import EngineRow, Job, JobInput
from farm.errors import NotFound
from farm.reports.quantization import AS_IT_CAME, Quantization
from farm.schemas.engines import EngineView
from farm.specs.precision import QUANTIZED, Precision
from farm.specs.roles import Role
from farm.specs.runtime import Runtime
from farm.stages import JobKind

_DYNAMIC = Quantization(
    method="dynamic ranges",
    snr_reason="not measured: activations are quantised at run time, each batch by its own range",
    histograms_reason="none: nothing is calibrated before it runs",
)
_PROGRAM = Quantization(
    method="max",
    snr_reason="not measured: AOTInductor's engines are quantised as programs, whose layers nothing compares",
    histograms_reason="none: its ranges are the largest magnitudes, and nothing else was looked at",
)
_ELSEWHERE = Quantization(snr_reason="unknown: it wasn't calibrated by this farm")
_UNREADABLE = Quantization(snr_reason="unknown: the stored record can't be read")
#: What a calibration's facts call their method → why there are no ratios.
_NOT_COMPARED = {
    AS_IT_CAME: "not measured: it was quantised in training, and comes without the graph from before",
    "tensorrt-cache": "not measured: its ranges come from a calibration cache, without samples",
}
_OLD = "not measured: it was calibrated by an earlier farm, or its layers can't be compared"


def of(session: Session, engine_id: str) -> tuple[Quantization, str | None]:
    """What calibration made of an engine's graph, and the digest of its histograms.

    Raises:
        NotFound: there is no such engine, or it isn't quantised.
    """
    row = session.get(EngineRow, engine_id)
    if row is None:
        raise NotFound(f"there is no engine {engine_id!r}", hint="`farm engines MODEL` lists them")
    if row.precision not in QUANTIZED:
        raise NotFound(
            f"engine {engine_id!r} is {row.precision}: nothing in it is quantised",
            hint=f"engines in {', '.join(QUANTIZED)} are",
        )
    found = _calibrations(session, [row.id]).get(row.id)
    histograms = (found.outputs or {}).get(Role.HISTOGRAMS) if found is not None else None
    told = _told(row.precision, row.runtime, None if found is None else found.facts)
    return told, histograms


def with_briefs(session: Session, views: Sequence[EngineView]) -> list[EngineView]:
    """Engines with a line on how each was quantised, if it was."""
    calibrations = _calibrations(session, [one.id for one in views if one.precision in QUANTIZED])

    def brief(view: EngineView) -> EngineView:
        if view.precision not in QUANTIZED:
            return view
        job = calibrations.get(view.id)
        told = _told(view.precision, view.runtime, None if job is None else job.facts)
        made = told.brief(_share(view))
        return view.model_copy(update={"quantization": made})

    return [brief(view) for view in views]


def _calibrations(session: Session, engines: Sequence[str]) -> dict[str, Job]:
    """Engine → the calibration that its build took."""
    if not engines:
        return {}
    rows = session.execute(
        select(EngineRow.id, Job.id)
        .join(JobInput, JobInput.job_id == EngineRow.build_job_id)
        .join(Job, Job.id == JobInput.needs_id)
        .where(EngineRow.id.in_(engines), Job.kind == JobKind.CALIBRATE)
    ).all()
    # Engines share a calibration, whose facts may be long.
    of = {job_id for _, job_id in rows}
    jobs = {job.id: job for job in session.scalars(select(Job).where(Job.id.in_(of)))} if of else {}
    return {engine_id: jobs[job_id] for engine_id, job_id in rows}


def _told(precision: str, runtime: str, facts: Any) -> Quantization:
    """Facts as they are shown; earlier versions stored anything a stage sent."""
    if precision == Precision.INT8_DYNAMIC:
        return _DYNAMIC.model_copy(update={"precision": precision})
    if facts is None:
        found = _PROGRAM if runtime == Runtime.AOTINDUCTOR else _ELSEWHERE
        return found.model_copy(update={"precision": precision})
    try:
        read = Quantization.read(facts)
    except ValidationError:
        return _UNREADABLE
    if read.snr_db:
        return read
    return read.model_copy(update={"snr_reason": _NOT_COMPARED.get(read.method or "", _OLD)})


def _share(view: EngineView) -> float | None:
    """The share of an engine's multiplications in eight bits."""
    found = view.compute.types.get(view.precision.computes_in) if view.compute else None
    return None if found is None else found.share
