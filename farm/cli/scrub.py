"""The command that verifies the store's bytes."""

from __future__ import annotations

import typer

from farm.cli import exits, show
from farm.cli.options import Json, Url, connect, example
from farm.specs.counted import counted


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Fleet", epilog=example("farm scrub"))(scrub)


def scrub(as_json: Json = False, url: Url = None) -> None:
    """Hash every blob in the farm's store and quarantine damaged ones.

    To restore a build's output, retry the build; to restore an upload, submit it again. The farm
    also scrubs slowly in the background. Exits with 1 if anything is damaged or missing.
    """
    report = connect(url).scrub()
    if as_json:
        show.document(report)
    else:
        told = (
            ("damaged", report.damaged),
            ("missing", report.missing),
            ("healed", report.healed),
        )
        for what, digests in told:
            for digest in digests:
                print(f"{what}  {digest}")
        print(
            f"checked {counted(report.checked, 'blob')} ({show.size(report.checked_bytes)}): "
            f"{len(report.damaged)} damaged, {len(report.missing)} missing"
        )
    if report.damaged or report.missing:
        raise typer.Exit(exits.FAILED)
