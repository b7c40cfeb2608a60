"""``farm top``: what the farm does now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import show
from farm.cli.options import Json, Url, connect, example

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farm.client import Farm
    from farm.schemas.fleet import NowView

_REFRESH_S = 2.0
_BAR = 10


def register(app: typer.Typer) -> None:
    app.command("top", rich_help_panel="Fleet", epilog=example("farm top --once"))(top)


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, as where there is no terminal.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show the workers and what they do, the queues, and the running jobs. Ctrl+C ends it.

    At most 200 running jobs.
    """
    with connect(url) as farm:
        if as_json:
            show.document(_now(farm))
        elif once or not show.on_terminal():
            for one in _shown(_now(farm)):
                show.console(None if show.on_terminal() else show.PIPED).print(one)
        else:
            _live(farm)


def _live(farm: Farm) -> None:
    from rich.console import Group
    from rich.live import Live

    try:
        with Live(Group(*_shown(_now(farm))), console=show.console(), auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH_S)
                live.update(Group(*_shown(_now(farm))), refresh=True)
    except KeyboardInterrupt:
        return


def _now(farm: Farm) -> NowView:
    seen = farm.now()
    seen.workers.sort(key=lambda one: (not one.online, one.name))
    return seen


def _shown(seen: NowView) -> Iterator[RenderableType]:
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
            "\n".join(job.title for job in one.running) or show.NONE,
        )
        for one in seen.workers
    ]
    yield _table(("worker", "state", "gpu", "job"), workers, "no workers; start some: farm worker")
    queues = [
        (one.queue, str(one.jobs), show.duration(one.oldest_s), str(one.workers))
        for one in seen.queues
        if one.jobs
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
