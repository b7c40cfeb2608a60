"""The command that frees disk space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import show
from farm.cli.options import Json, Url, again, connect, example
from farm.specs import durations
from farm.specs.counted import counted

if TYPE_CHECKING:
    from farm.schemas.storage import GcReport


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Fleet", epilog=example("farm gc --dry-run --older-than 7d"))(gc)


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be removed.")
    ] = False,
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than",
            metavar="DURATION",
            help="Keep blobs uploaded or requested within this time: 90m, 24h, 7d.",
        ),
    ] = "24h",
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Remove blobs that no model, build, finished job or engine refers to.

    These are uploads no build used, files of unsuccessful jobs, and remains of interrupted
    uploads. Builds can keep running. History older than FARM_KEEP_BUILDS_DAYS and the like goes, too.
    """
    report = connect(url).gc(older_than_s=durations.parse(older_than), dry_run=dry_run)
    if as_json:
        show.document(report)
        return
    if report.removed:
        rows = [(blob.digest, show.size(blob.bytes)) for blob in report.removed]
        show.table(("blob", "size"), rows, keep=("blob", "size"))
    print(_summary(report))
    forgotten = _of_history(report)
    if forgotten:
        print(forgotten)
    if dry_run and (report.removed_total or report.uploads or forgotten):
        print(f"to remove them: {again(f'farm gc --older-than {older_than}', url)}")


def _summary(report: GcReport) -> str:
    done = "would remove" if report.dry_run else "removed"
    return (
        f"{done} {_counted(report.removed_total, 'blob', report.removed_bytes)} and "
        f"{_counted(report.uploads, 'interrupted upload', report.uploads_bytes)}; "
        f"kept {_counted(report.kept, 'blob', report.kept_bytes)}"
    )


def _of_history(report: GcReport) -> str:
    """Empty if there is nothing to tell."""
    told = {
        ("build", "builds"): report.history.builds,
        ("job", "jobs"): report.history.jobs,
        ("event", "events"): report.history.events,
        ("piece of logs", "pieces of logs"): report.history.logs,
        ("attempt's samples", "attempts' samples"): report.history.samples,
    }
    found = [counted(number, *nouns) for nouns, number in told.items() if number]
    done = "would forget" if report.dry_run else "forgot"
    return f"{done} {', '.join(found)}" if found else ""


def _counted(number: int, noun: str, size: int) -> str:
    return f"{counted(number, noun)} ({show.size(size)})"
