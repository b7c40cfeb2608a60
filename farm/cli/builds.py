"""Build commands: status, logs, cancel, retry, explain, builds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from farm.cli import complete, show, traced
from farm.cli.options import BuildId, Json, LabelFilters, Url, Wide, again, connect, example, page
from farm.cli.watch import jobs_table, remaining, tell_held_back
from farm.specs.states import BUILD_ENDED

if TYPE_CHECKING:
    from farm.client import Build
    from farm.schemas.builds import BuildView

_ID = "01m7y8mb9kssegkq"
_PANEL = "Builds"
Job = Annotated[int | None, typer.Option("--job", metavar="N", help="Only this job.")]


def register(app: typer.Typer) -> None:
    for command, text in (
        (status, f"farm status {_ID}"),
        (logs, f"farm logs {_ID} --job 42"),
        (cancel, f"farm cancel {_ID}"),
        (retry, f"farm retry {_ID}"),
        (explain, f"farm explain {_ID}"),
        (builds, "farm builds --model digits --state failed"),
    ):
        app.command(rich_help_panel=_PANEL, epilog=example(text))(command)


def status(build_id: BuildId, as_json: Json = False, url: Url = None) -> None:
    """Show a build: its jobs, engines and errors."""
    view = connect(url).build(build_id).view
    if as_json:
        show.document(view)
    else:
        show_build(view, url)


def show_build(view: BuildView, url: str | None) -> None:
    """Print a build with its jobs and engines."""
    took = show.elapsed(view.created_at, view.finished_at)
    head = f"build {view.id} of {view.model} v{view.version}: "
    show.line(Text.assemble(head, show.state(view.state), f", {took}{remaining(view)}"))
    show.line(f"on the page: {page(view.id, url)}")
    if view.labels:
        show.line(f"labels: {show.labels(view.labels)}")
    if view.fixed_inputs:
        show.line(f"fixed: {show.fixed(view.fixed_inputs)}")
    jobs_table(view.jobs)
    show.line()
    engines = [
        (want.target, str(want.precision), want.engine or show.NONE) for want in view.engines
    ]
    show.table(("target", "precision", "engine"), engines)
    if view.state not in BUILD_ENDED:
        # Once: the precisions of a target share the reason.
        for target, why in dict.fromkeys((want.target, want.why) for want in view.engines):
            show.line(f"{target}: {why}")
    tell_held_back(view)
    _show_failures(view, url)


def _show_failures(view: BuildView, url: str | None) -> None:
    from farm.client.failures import failures

    for job, error in failures(view):
        show.line(f"\n{view.name_of(job)} failed: {error.detail}")
        log = again(f"farm logs {view.id} --job {job.id}", url)
        show.line(f"  hint: {error.hint}\n  its log: {log}" if error.hint else f"  its log: {log}")


def logs(
    build_id: BuildId,
    job: Job = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing until the build ends.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Print the output of a build's jobs. With --follow --json, print one line of JSON per piece."""
    build = connect(url).build(build_id)
    if follow:
        _follow(build, job, as_json=as_json)
        return
    text = build.logs(job)
    if as_json:
        show.document({"build": build.id, "job": job, "text": text})
    else:
        sys.stdout.write(text)


def _follow(build: Build, job: int | None, *, as_json: bool) -> None:
    last: int | None = None
    for event in build.events():
        if event.kind != "log" or job not in (None, event.job):
            continue
        if as_json:
            show.document(event)
            continue
        if job is None and event.job != last:
            print(f"=== {event.title}")
            last = event.job
        sys.stdout.write(str(event.data.get("text", "")))
        sys.stdout.flush()


def cancel(build_id: BuildId, as_json: Json = False, url: Url = None) -> None:
    """Cancel a build. Jobs that other builds need continue. Cancelling twice is harmless."""
    build = connect(url).build(build_id)
    had_ended = build.has_ended
    view = build.cancel().view
    if as_json:
        show.document(view)
        return
    was = "had already ended: " if had_ended else ""
    show.line(f"build {view.id} {was}{view.state}")
    show.line(f"  on the page: {page(view.id, url)}")


def retry(
    build_id: BuildId,
    force: Annotated[
        bool, typer.Option("--force", help="Also if what failed would only fail again.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Rerun a build's failed and cancelled jobs. Succeeded jobs are kept.

    A build whose model, data or request is at fault is refused with what to change.
    """
    build = connect(url).build(build_id)
    to_retry = build.view.state in ("failed", "cancelled")
    with traced.command("retry"):
        view = build.retry(force=force).view
    if as_json:
        show.document(view)
        return
    note = "" if to_retry else ", nothing to retry"
    show.line(f"build {view.id} {view.state}{note}")
    show.line(f"  on the page: {page(view.id, url)}")
    if to_retry:
        show.line(f"  watch it: {again(f'farm watch {view.id}', url)}")


def explain(build_id: BuildId, as_json: Json = False, url: Url = None) -> None:
    """Explain why each job of a build ran or was reused, compared with the closest earlier job."""
    found = connect(url).build(build_id).explain()
    if as_json:
        show.document(found)
        return
    rows = [(str(job.job), job.title, str(job.reuse), job.why) for job in found.jobs]
    show.table(("job", "title", "reuse", "why"), rows, keep=("job", "reuse"))


def builds(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Only builds of this model.",
            autocompletion=complete.models,
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="STATE",
            help="Only builds in this state: queued, running, succeeded, failed, cancelled.",
            autocompletion=complete.build_states,
        ),
    ] = None,
    label: LabelFilters = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of builds.")] = 20,
    wide: Wide = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List the newest builds."""
    found = connect(url).builds(model=model, state=state, labels=label or (), limit=limit)
    if as_json:
        show.document(found)
        return
    rows = [
        (
            build.id,
            f"{build.model} v{build.version}",
            show.state(build.state),
            f"{build.engines_done}/{build.engines_total}",
            show.ago(build.created_at),
            show.elapsed(build.created_at, build.finished_at),
            ", ".join(build.targets),
            ", ".join(build.precisions) or "every",
            build.error.detail.partition("\n")[0] if build.error else "",
        )
        for build in found
    ]
    headers = (
        *("id", "model", "state", "engines", "submitted", "took"),
        *("targets", "precisions", "error"),
    )
    empty = (
        f"no matching builds; list all: {again('farm builds', url)}"
        if model or state or label
        else f"no builds; submit one: {again('farm submit MODEL_FILE --gpu sm_89', url)}"
    )
    show.table(headers, rows, keep=("id", "model", "state", "engines"), empty=empty, wide=wide)
