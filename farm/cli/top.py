"""``farm top``: what the farm does now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import show
from farm.cli.options import Json, Url, connect, example

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farm.client import Farm
    from farm.schemas.builds import JobView
    from farm.schemas.fleet import WorkerView

_REFRESH_S = 2.0
_BUILDS = 50  #: whose jobs are looked at, of those that run and of those that wait
_BAR = 10


def register(app: typer.Typer) -> None:
    app.command("top", rich_help_panel="Fleet", epilog=example("farm top --once"))(top)


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A queue with jobs in it.

    Parameters:
        workers: how many that are online read it.
    """

    queue: str
    jobs: int
    oldest_s: float
    workers: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The farm at one moment."""

    workers: list[WorkerView]
    queues: list[Queued]
    running: list[JobView]


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, as where there is no terminal.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show the workers and what they do, the queues, and the running jobs. Ctrl+C ends it.

    The jobs are those of the newest builds that run or wait.
    """
    with connect(url) as farm:
        if as_json:
            show.document(asdict(look(farm)))
        elif once or not show.on_terminal():
            for one in _shown(look(farm)):
                show.console(None if show.on_terminal() else show.PIPED).print(one)
        else:
            _live(farm)


def _live(farm: Farm) -> None:
    from rich.console import Group
    from rich.live import Live

    try:
        with Live(Group(*_shown(look(farm))), console=show.console(), auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH_S)
                live.update(Group(*_shown(look(farm))), refresh=True)
    except KeyboardInterrupt:
        return


def look(farm: Farm) -> Seen:
    """What the farm does now."""
    jobs: dict[int, JobView] = {}
    for state in ("running", "queued"):
        for build in farm.builds(state=state, limit=_BUILDS):
            jobs |= {job.id: job for job in farm.build(build.id).view.jobs}
    workers = sorted(farm.workers(), key=lambda one: (not one.online, one.name))
    running = [job for job in jobs.values() if job.state == "running"]
    return Seen(
        workers=workers,
        queues=_queues([job for job in jobs.values() if job.state == "queued"], workers),
        running=sorted(running, key=lambda job: job.started_at or job.created_at),
    )


def _queues(jobs: Sequence[JobView], workers: Sequence[WorkerView]) -> list[Queued]:
    now = datetime.now(UTC)
    waiting: dict[str, list[JobView]] = {}
    for job in jobs:
        waiting.setdefault(job.queue or "?", []).append(job)
    found = [
        Queued(
            queue=queue,
            jobs=len(those),
            oldest_s=max((now - min(job.created_at for job in those)).total_seconds(), 0.0),
            workers=sum(
                one.online and queue in one.queues and queue not in one.unread for one in workers
            ),
        )
        for queue, those in waiting.items()
    ]
    return sorted(found, key=lambda one: -one.oldest_s)


def _shown(seen: Seen) -> Iterator[RenderableType]:
    online = sum(one.online for one in seen.workers)
    waiting = sum(one.jobs for one in seen.queues)
    yield (
        f"{online} of {len(seen.workers)} workers online · "
        f"jobs: {len(seen.running)} running, {waiting} queued"
    )
    yield ""
    workers = [
        (
            one.name,
            show.state("online" if one.online else "offline"),
            one.gpu or "CPU",
            one.job_title or show.NONE,
        )
        for one in seen.workers
    ]
    yield _table(("worker", "state", "gpu", "job"), workers, "no workers; start some: farm worker")
    queues = [
        (one.queue, str(one.jobs), show.duration(one.oldest_s), str(one.workers))
        for one in seen.queues
    ]
    yield ""
    yield _table(("queue", "jobs", "oldest", "workers"), queues, "nothing is queued")
    yield ""
    running = [
        (
            str(job.id),
            job.title,
            job.phase or show.NONE,
            _bar(job.progress),
            show.elapsed(job.started_at, None),
        )
        for job in seen.running
    ]
    yield _table(("job", "title", "stage", "", "time"), running, "nothing runs")


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]], empty: str) -> RenderableType:
    return show.grid(headers, rows, keep=(headers[0], headers[-1])) if rows else empty


def _bar(progress: float | None) -> str:
    """``████░░░░░░  40 %``."""
    if progress is None:
        return ""
    full = round(min(max(progress, 0.0), 1.0) * _BAR)
    return f"{'█' * full}{'░' * (_BAR - full)} {progress:4.0%}"
