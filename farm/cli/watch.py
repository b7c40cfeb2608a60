"""``farm watch``: a build's stages as they happen. Ctrl+C stops watching, not the build."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import typer

from farm.cli import exits, show
from farm.cli.options import BuildId, Json, Timeout, Url, again, connect, example, page
from farm.cli.patience import Patience, check_timeout
from farm.specs.counted import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from farm.client import Build
    from farm.schemas.builds import BuildView, JobView
    from farm.schemas.events import Event

_TICK_S = 0.25
_ROOM = 8  #: terminal lines not available for jobs
_HEADERS = ("job", "title", "state", "stage", "worker", "time")
_KEEP = ("job", "state", "time")
_ORDER = ("failed", "running", "queued", "waiting", "succeeded", "cancelled")


def register(app: typer.Typer) -> None:
    text = "farm watch 01m7y8mb9kssegkq"
    app.command("watch", rich_help_panel="Builds", epilog=example(text))(watch)


def watch(
    build_id: BuildId, timeout: Timeout = None, as_json: Json = False, url: Url = None
) -> None:
    """Watch a build's stages until it ends. Ctrl+C stops watching, not the build.

    With --json, print each event as a line of JSON. Exits with 1 if the build failed or was cancelled,
    with 5 if it succeeded but an engine failed a gate, and with 6 after --timeout.
    """
    check_timeout(timeout, waits=True)
    code = watch_build(connect(url).build(build_id), url, as_json=as_json, timeout=timeout)
    raise typer.Exit(code)


def watch_build(
    build: Build,
    url: str | None,
    *,
    as_json: bool,
    only_end: bool = False,
    timeout: str | None = None,
) -> int:
    """Watch a build until it ends; return the exit code.

    Parameters:
        only_end: with ``as_json``, print the build once it has ended instead of its events.

    Raises:
        WaitTimedOut
    """
    patience = Patience(build, timeout, url)
    try:
        if only_end:
            _wait(build, patience)
        elif as_json:
            for event in patience.events():
                show.document(event)
        else:
            follow(build, patience)
    except KeyboardInterrupt:
        return stopped(build, url)
    return _conclude(build.refresh(), url, as_json=as_json)


def stopped(build: Build, url: str | None) -> int:
    """Report that the build continues after Ctrl+C; return the exit code."""
    resume = again(f"farm watch {build.id}", url)
    print(f"\nStopped watching; build {build.id} continues. To resume: {resume}", file=sys.stderr)
    return exits.INTERRUPTED


def follow(build: Build, patience: Patience | None = None) -> None:
    """Show a build's stages until it ends: live on a terminal, else line by line.

    Raises:
        WaitTimedOut
    """
    patience = patience or Patience(build, None)
    if show.on_terminal():
        _live(build, patience)
    else:
        _lines(build, patience)


def _wait(build: Build, patience: Patience) -> None:
    """Print the build once it has ended, or as it is when the time is up."""
    try:
        for _ in patience.events():
            pass
    finally:
        show.document(build.refresh().view)


def tell_ending(view: BuildView) -> None:
    """Report how a build ended, and which of its engines are doubtful."""
    took = show.elapsed(view.created_at, view.finished_at)
    done = f"{view.engines_done} of {counted(view.engines_total, 'engine')}"
    doubtful = f", {view.engines_doubtful} of them doubtful" if view.engines_doubtful else ""
    show.line(f"build {view.id} {view.state} after {took}: {done}{doubtful}")
    tell_held_back(view)
    for want in view.engines:
        for doubt in want.doubts:
            print(f"doubtful: {want.precision}@{want.target}: {doubt}", file=sys.stderr)


def tell_held_back(view: BuildView) -> None:
    """Say that pulls don't take a build's version, and why."""
    for change in view.held_back:
        print(f"v{view.version} has other inputs: {change}", file=sys.stderr)
    if view.held_back:
        print(
            f"hint: no pull takes it by default. To give it to the fleet: farm promote {view.model} "
            f"{view.version} prod --new-inputs; to let pulls take it: submit it again with --new-inputs",
            file=sys.stderr,
        )


def _conclude(build: Build, url: str | None, *, as_json: bool) -> int:
    """Report how the build ended; return the exit code."""
    from farm.client.failures import failures, is_retryable

    view = build.view
    if as_json:
        build.raise_for_state()
        return _ended_well(view)
    tell_ending(view)
    show.line(f"  on the page: {page(view.id, url)}")
    if view.state == "failed":
        for job, error in failures(view):
            print(f"error: {view.name_of(job)}: {error.detail}", file=sys.stderr)
            print(
                f"hint: {error.hint or f'read its log: farm logs {view.id} --job {job.id}'}",
                file=sys.stderr,
            )
    if view.state == "succeeded":
        from farm.specs.runtime import Target

        tags = dict.fromkeys(Target.parse(want.target).gpu for want in view.engines)
        for tag in tags:
            show.line(
                f"  {again(f'farm pull {view.model}@{view.version} --gpu {tag} -o engines', url)}"
            )
        return _ended_well(view)
    # A failure of the model itself would only repeat.
    if view.state == "cancelled" or any(is_retryable(error) for _, error in failures(view)):
        show.line(f"  to run it again: {again(f'farm retry {view.id}', url)}")
    return exits.FAILED


def _ended_well(view: BuildView) -> int:
    return exits.DOUBTFUL if view.engines_doubtful else exits.OK


def _lines(build: Build, patience: Patience) -> None:
    """Print a line whenever a stage changes."""
    show.line(_title(build.view) + remaining(build.view))
    phases: dict[int | None, str] = {}
    for event in patience.events():
        if event.kind == "log" or event.state == "waiting":
            continue
        if event.kind == "phase":
            # After a colon comes the phase's progress in words, which isn't worth a line per second.
            phase = str(event.data.get("phase")).partition(":")[0]
            if phases.get(event.job) == phase:
                continue
            phases[event.job] = phase
        print(_line(event), flush=True)


def _line(event: Event) -> str:
    what = event.title or f"build {event.build}"
    happened = event.state or _phase(event.data.get("phase"), event.data.get("progress"))
    has_failed = event.state == "failed"
    return f"{event.at.astimezone():%H:%M:%S}  {what}  {happened}{_more(event.data, has_failed=has_failed)}"


def _more(data: dict[str, Any], *, has_failed: bool) -> str:
    parts = []
    if data.get("worker"):
        parts.append(f"on {data['worker']}")
    if data.get("attempt", 1) > 1:
        parts.append(f"attempt {data['attempt']}")
    if data.get("cause"):
        parts.append(str(data["cause"]))
    if data.get("error"):
        # Why a job failed for good is told once, with what to do, when the build has ended.
        parts.append(str(data["error"].get("code" if has_failed else "detail")))
    return f" ({'; '.join(parts)})" if parts else ""


def _phase(phase: str | None, progress: float | None) -> str:
    if phase is None:
        return ""
    return phase if progress is None else f"{phase} {progress:.0%}"


def _live(build: Build, patience: Patience) -> None:
    """Show the jobs in place, with the time ticking, until the build has ended."""
    from rich.live import Live

    screen = _Screen(build.view)
    bell = _Bell(build)
    bell.thread.start()
    with Live(screen, console=show.console(), refresh_per_second=1 / _TICK_S):
        while not bell.ended:
            patience.check()
            # Events only trigger a refresh: what is shown is always read from the farm.
            if bell.news.wait(_TICK_S):
                bell.news.clear()
                screen.show(build.refresh().view)
        screen.show(build.refresh().view)
    if bell.error is not None:
        raise bell.error


class _Bell:
    """Listens to a build's events in its own thread."""

    def __init__(self, build: Build) -> None:
        self.news = threading.Event()
        self.ended = False
        self.error: Exception | None = None
        self._build = build
        # A daemon thread, so that Ctrl+C needn't wait for the next event.
        self.thread = threading.Thread(target=self._listen, daemon=True, name="watch")

    def _listen(self) -> None:
        try:
            for event in self._build.events():
                if event.kind != "log":
                    self.news.set()
        except Exception as err:
            self.error = err  # raised in the thread that shows it
        self.ended = True
        self.news.set()


class _Screen:
    """A build as a live table."""

    def __init__(self, view: BuildView) -> None:
        self.show(view)

    def show(self, view: BuildView) -> None:
        """Show the build as it was just fetched."""
        self.view, self._fetched = view, time.monotonic()

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield _title(self.view)
        yield _jobs_grid(self.view.jobs, room=console.height - _ROOM)
        yield _summary(self.view, time.monotonic() - self._fetched)


def _jobs_grid(jobs: list[JobView], *, room: int | None = None) -> RenderableType:
    """The jobs, each on a line, as a table; if there isn't room for all, those that matter most now."""
    shown = list(jobs)
    if room is not None and len(jobs) > room:
        shown = sorted(jobs, key=lambda job: _ORDER.index(job.state))[: max(room, 1)]
    rows = [[show.one_line(cell) for cell in _row(job)] for job in shown]
    return show.grid(_HEADERS, rows, keep=_KEEP)


def jobs_table(jobs: list[JobView]) -> None:
    """Print the jobs as a table."""
    show.table(_HEADERS, [_row(job) for job in jobs], keep=_KEEP)


def _row(job: JobView) -> tuple[Any, ...]:
    stage = _phase(job.phase, job.progress) if job.state in ("running", "queued") else ""
    if job.reuse != "ran":
        stage = stage or job.reuse
    if job.error is not None:
        stage = "" if job.never_ran else job.error.code
    if job.waits_for:
        stage = f"waits for {job.waits_for}"
    attempt = f" (attempt {job.attempt})" if job.attempt > 1 else ""
    return (
        str(job.id),
        job.title,
        show.state("not run" if job.never_ran else job.state),
        stage + attempt,
        job.worker or show.NONE,
        show.elapsed(job.started_at, job.finished_at) + _expected(job),
    )


def _expected(job: JobView) -> str:
    """How long a running job's like took."""
    if job.state != "running" or job.expected_s is None:
        return ""
    return f" of ~{show.duration(job.expected_s)}"


def remaining(view: BuildView, since_s: float = 0.0) -> str:
    """How much longer a build is expected to take.

    Parameters:
        since_s: how long ago it was fetched.
    """
    if view.remaining_s is None:
        return ""
    return f", about {show.duration(view.remaining_s - since_s)} left"


def _title(view: BuildView) -> str:
    reused = sum(job.reuse != "ran" for job in view.jobs)
    jobs = counted(view.jobs_total, "job")
    return f"build {view.id} of {view.model} v{view.version}: {jobs}, {reused} reused"


def _summary(view: BuildView, since_s: float) -> str:
    took = show.elapsed(view.created_at, view.finished_at)
    done = (
        f"jobs {view.jobs_done}/{view.jobs_total} "
        f"· engines {view.engines_done}/{view.engines_total}"
    )
    if view.finished_at is not None:
        return f"{view.state} after {took} · {done}"
    left = remaining(view, since_s)
    return f"{view.state} for {took}{left} · {done} · Ctrl+C stops watching, not the build"
