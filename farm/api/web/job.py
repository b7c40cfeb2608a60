"""A job: its attempts, what it used, what it recorded and printed, and what takes its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from farm.api.jobs import JobId
from farm.api.services import By, Farm, Services
from farm.api.web import readable
from farm.api.web.render import page
from farm.builds import logs
from farm.builds.folds import folded
from farm.builds.job import JobDetail, detail
from farm.errors import FarmError
from farm.queue import samples
from farm.queue.shown import task_page
from farm.reports import kept, shown
from farm.reports.layers import LayerReport
from farm.schemas.problems import Failure
from farm.schemas.samples import AttemptSamples
from farm.specs.roles import Role

router = APIRouter(include_in_schema=False)

_MOST_LOG = 100_000  #: characters of a log that are shown; the whole is a link
_MOST_LAYERS, _MOST_LAYER_BYTES = 25, 4 * 2**20
_TABLE_ROWS = 24


@dataclass(frozen=True, kw_only=True)
class Use:
    """What an attempt used: for a chart, in figures, and some of the samples."""

    samples: AttemptSamples
    figures: Sequence[tuple[str, str]]
    rows: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    name: str
    type: str
    kernel: str | None
    microseconds: float
    share: float  #: of the engine's time


@router.get("/jobs/{job_id}")
def job(request: Request, job_id: JobId, farm: Farm, by: By) -> Response:
    with farm.db.read() as session:
        found = detail(session, job_id)
        fleet = farm.fleet(session)
        used = samples.of_job(session, job_id).attempts
        log, is_whole = logs.tail(session, job_id, _MOST_LOG)
    return page(
        request,
        by,
        "job.html",
        job=found,
        error=Failure.model_validate(found.row.error) if found.row.error else None,
        gpu={worker.name: worker.gpu for worker in fleet.workers}.get(found.row.owner or ""),
        waits_for=fleet.waits_for(found.row),
        flower=[task_page(farm.settings.flower_url, job_id, one.number) for one in found.attempts],
        uses=[_use(one) for one in used],
        facts=readable.groups(kept.shown(found.row.facts)),
        layers=_layers(farm, found),
        most_layers=_MOST_LAYERS,
        log=folded(log),
        is_whole=is_whole,
    )


def _use(found: AttemptSamples) -> Use:
    step = max(1, -(-len(found.at_s) // _TABLE_ROWS))
    return Use(samples=found, figures=list(_figures(found)), rows=range(0, len(found.at_s), step))


def _figures(found: AttemptSamples) -> Sequence[tuple[str, str]]:
    spans = [after - before for before, after in pairwise(found.at_s)]
    spent = sum(cpus * span for cpus, span in zip(found.cpus[1:], spans, strict=False))
    mean = spent / sum(spans) if spans else max(found.cpus, default=0)
    told = [("CPUs", f"{mean:.2f} on average, {max(found.cpus, default=0):.2f} at most")]
    told.append(("Memory", f"{shown.size(max(found.memory_bytes, default=0))} at most"))
    in_use = [one for one in found.gpu_share if one is not None]
    if in_use:
        told.append(("GPU in use", f"{shown.share(sum(in_use) / len(in_use))} of the time"))
    for name, values, unit in (
        ("GPU power", found.gpu_power_w, "W"),
        ("SM clock", found.gpu_clock_mhz, "MHz"),
    ):
        known = [one for one in values if one is not None]
        if known:
            told.append((name, f"{min(known):.0f} to {max(known):.0f} {unit}"))
    memory = [one for one in found.gpu_memory_bytes if one is not None]
    if memory:
        told.append(("GPU memory", f"{shown.size(max(memory))} at most, of all its processes"))
    return told


def _layers(farm: Services, found: JobDetail) -> list[LayerTime]:
    """The slowest layers of the engine that it built, if a profiler ran."""
    digest = next((one.digest for one in found.outputs if one.role == Role.LAYERS), None)
    if digest is None or found.row.state != "succeeded":
        return []
    try:
        stored = farm.store.find(digest)
        if stored is None or stored.bytes > _MOST_LAYER_BYTES:
            return []
        with farm.store.local(digest) as file:
            report = LayerReport.model_validate_json(file.read_bytes())
    except (FarmError, OSError, ValidationError):
        return []  # the engine's own operation says what is wrong with it
    timed = [(one, one.microseconds) for one in report.layers if one.microseconds is not None]
    total = sum(time for _, time in timed) or 1.0
    slowest = sorted(timed, key=lambda pair: -pair[1])[:_MOST_LAYERS]
    return [
        LayerTime(
            name=one.name, type=one.type, kernel=one.kernel, microseconds=time, share=time / total
        )
        for one, time in slowest
    ]
