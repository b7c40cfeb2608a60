"""``farm retention``: what is kept of a model, and what the rules let go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, again, connect, example
from farm.errors import InvalidRequest
from farm.specs import durations

if TYPE_CHECKING:
    from farm.schemas.retention import RetentionReport, RetentionView

_DAY_S = 86400
_NEVER = "never"


def register(app: typer.Typer) -> None:
    text = "farm retention digits --engines 90d --newest 3"
    app.command(rich_help_panel="Engines", epilog=example(text))(retention)


def retention(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="By default all, to see or apply what their rules let go.",
            autocompletion=complete.models,
        ),
    ] = None,
    engines: Annotated[
        str | None,
        typer.Option(
            "--engines",
            metavar="TIME",
            help="Delete engines of versions that aren't kept after this time without a pull: 90d, never.",
        ),
    ] = None,
    intermediates: Annotated[
        str | None,
        typer.Option(
            "--intermediates",
            metavar="TIME",
            help="Delete a version's intermediates this long after its last build: 14d, never.",
        ),
    ] = None,
    newest: Annotated[
        int | None, typer.Option("--newest", metavar="N", min=0, help="Keep the N newest versions.")
    ] = None,
    history: Annotated[
        int | None,
        typer.Option(
            "--history", metavar="N", min=0, help="Keep the N versions that an alias named before."
        ),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Have the farm's rule hold again.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Delete what the rules let go now, not within the hour.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Say what is kept of a model; without one, show what the rules of all models let go.

    The versions that aliases name, those they named before, and the newest keep their engines.
    """
    given = {"newest": newest, "history": history}
    given |= {"engines_days": _days(engines), "intermediates_days": _days(intermediates)}
    changes = {name: value for name, value in given.items() if value is not None}
    farm = connect(url)
    if model is None:
        if changes or reset:
            raise InvalidRequest(
                "a rule is set for a model",
                hint="name it: farm retention MODEL --engines 90d; FARM_RETENTION is for all others",
            )
        _tell(farm.apply_retention(dry_run=not apply), url, as_json=as_json)
        return
    if apply or (reset and changes):
        raise InvalidRequest(
            "--apply is for all models, and --reset sets nothing else",
            hint="farm retention --apply; farm retention MODEL --reset",
        )
    if reset:
        view = farm.reset_retention(model)
    elif changes:
        rule = farm.retention(model).rule.model_dump() | changes
        kept = {name: value for name, value in rule.items() if value != _NEVER}
        view = farm.set_retention(model, **kept)
    else:
        view = farm.retention(model)
    if as_json:
        show.document(view)
        return
    _show(view)


def _days(time: str | None) -> Any:
    if time is None or time.lower() == _NEVER:
        return time and _NEVER
    return durations.parse(time) / _DAY_S


def _show(view: RetentionView) -> None:
    rule = view.rule
    whose = "by the farm's rule" if view.is_default else f"by a rule of {view.set_by}"
    if rule.is_off:
        show.line(f"all of {view.model} is kept, {whose}")
        return
    show.line(f"{view.model}, {whose}:")
    if rule.engines_days is not None:
        after = durations.told(rule.engines_days * _DAY_S)
        show.line(f"  other engines go after {after} without a pull")
    if rule.intermediates_days is not None:
        after = durations.told(rule.intermediates_days * _DAY_S)
        show.line(f"  intermediates go {after} after the last build")
    for kept in view.kept:
        show.line(f"  version {kept.version} is kept: {', '.join(kept.why)}")


def _tell(report: RetentionReport, url: str | None, *, as_json: bool) -> None:
    if as_json:
        show.document(report)
        return
    rows = [
        (one.deletion.what, one.why, show.size(one.deletion.freed_bytes)) for one in report.items
    ]
    show.table(("what", "why", "frees"), rows, keep=("what",), empty="the rules let nothing go")
    if rows:
        done = "would free" if report.dry_run else "freed"
        show.line(f"{done} {show.size(report.freed_bytes)}")
    if rows and report.dry_run:
        show.line(f"to delete it now: {again('farm retention --apply', url)}")
