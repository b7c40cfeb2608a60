"""What ``--dry-run`` of ``farm submit`` and ``farm bench`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from farm.cli import show
from farm.specs.counted import counted
from farm.specs.states import Reuse

if TYPE_CHECKING:
    from farm.schemas.forecast import Bytes, DryRun, ForeseenJob, Seconds, WallForecast

_UNKNOWN = "unknown"
_UNITS = (("h", 3600.0), ("min", 60.0))
#: From how many of a unit on durations are told in it.
_MANY = 2


def show_dry_run(found: DryRun, *, as_json: bool) -> None:
    """Print what a submission would do."""
    if as_json:
        show.document(found)
        return
    version = f"v{found.version}, a new version" if found.is_new_version else f"v{found.version}"
    show.line(f"dry run of {found.model} {version}: nothing is submitted")
    _jobs(found)
    ran = sum(job.reuse == Reuse.RAN for job in found.jobs)
    engines = sum(engine.is_new for engine in found.engines)
    show.line(
        f"{counted(len(found.jobs), 'job')}, {len(found.jobs) - ran} of them reused; "
        f"{counted(len(found.engines), 'engine')}, {engines} of them new"
    )
    show.left_out(found.left_out)
    for warning in dict.fromkeys(one.warning for one in found.engines if one.warning):
        show.note(f"warning: {warning}")
    if found.refusal is not None:
        show.note(f"it would be refused now: {found.refusal}")
    for warning in found.warnings:
        show.note(f"warning: {warning}")
    _queues(found)
    for missing in dict.fromkeys(job.waits_for for job in found.jobs if job.waits_for):
        show.line(f"would wait for {missing}")
    show.line(f"expected to take {_wall(found.wall)}")
    for blob in found.absent:
        show.line(f"to be uploaded: the {blob.role} {show.short(blob.digest)}")
    for what in found.unchecked:
        show.line(f"not checked: {what}")


def _jobs(found: DryRun) -> None:
    headers = ("stage", "for", "state", "takes", "p10–p90", "memory", "like it")
    rows = [_row(job, found.model) for job in found.jobs]
    show.table(headers, rows, keep=("stage", "for", "state", "takes"))


def _row(job: ForeseenJob, model: str) -> tuple[str | Text, ...]:
    # Its title less what the first line says.
    what = job.title.removeprefix(f"{job.kind} ").removeprefix(model).removeprefix(":")
    state = "new" if job.state is None else show.state(job.state)
    if job.state == "succeeded":
        return (str(job.kind), what or show.NONE, state, *([show.NONE] * 4))
    known = job.forecast
    if known is None:
        return (str(job.kind), what or show.NONE, state, _UNKNOWN, show.NONE, _UNKNOWN, "0")
    return (
        str(job.kind),
        what or show.NONE,
        state,
        show.duration(known.took.expected),
        between(known.took),
        _memory(known.peak_memory),
        str(known.jobs),
    )


def _memory(found: Bytes | None) -> str:
    return _UNKNOWN if found is None else show.size(found.expected)


def _queues(found: DryRun) -> None:
    rows = [
        (
            one.queue,
            str(one.workers),
            str(one.jobs),
            str(one.ahead),
            str(one.more_urgent),
            str(one.own),
            show.NONE if one.starts_s is None else show.duration(one.starts_s),
        )
        for one in found.queues
    ]
    if rows:
        headers = ("queue", "workers", "jobs", "ahead", "more urgent", "yours", "starts in")
        show.table(headers, rows, keep=("queue", "workers", "jobs", "ahead", "starts in"))


def _wall(wall: WallForecast) -> str:
    why = []
    if wall.unknown:
        why.append(f"nothing like {wall.unknown} of the jobs has run")
    if wall.stuck:
        why.append(f"{wall.stuck} wait for a worker")
    if wall.took is None:
        return f"{_UNKNOWN}: {' and '.join(why)}"
    told = show.duration(wall.took.expected)
    if wall.took.low is not None:
        told += f" ({between(wall.took)})"
    return f"at least {told}: {' and '.join(why)}" if why else told


def between(took: Seconds) -> str:
    """``6.1–12 s``, ``2–14 min``."""
    if took.low is None or took.high is None:
        return show.NONE
    unit, unit_s = next(((n, s) for n, s in _UNITS if took.high >= _MANY * s), ("s", 1.0))
    low, high = (_few_digits(value / unit_s) for value in (took.low, took.high))
    return f"{low}–{high} {unit}" if low != high else f"{low} {unit}"


def _few_digits(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
