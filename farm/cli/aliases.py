"""``farm promote``, ``farm rollback`` and ``farm aliases``: which version the fleet is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.compare import latency, metric
from farm.cli.options import Json, ModelName, Url, Wide, again, connect, example
from farm.specs.references import PROD

if TYPE_CHECKING:
    from farm.schemas.aliases import Promotion

_PANEL = "Engines"

Alias = Annotated[
    str,
    typer.Argument(metavar="[ALIAS]", help="The alias.", autocompletion=complete.aliases),
]
Note = Annotated[
    str | None, typer.Option("--note", metavar="TEXT", help="Why, for the alias's history.")
]
Revision = Annotated[
    int | None,
    typer.Option(
        "--revision",
        metavar="N",
        min=0,
        help="Only if the alias is at this revision, 0 if there is none.",
    ),
]


def register(app: typer.Typer) -> None:
    text = 'farm promote digits 7 prod --note "27 % fewer errors"'
    app.command(rich_help_panel=_PANEL, epilog=example(text))(promote)
    app.command(rich_help_panel=_PANEL, epilog=example("farm rollback digits prod"))(rollback)
    app.command(rich_help_panel=_PANEL, epilog=example("farm aliases digits prod"))(aliases)


def promote(
    model: ModelName,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="7, v7, or an alias that names it.")
    ],
    alias: Alias = PROD,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Promote it although GPUs lack an engine of it; list them."),
    ] = False,
    new_inputs: Annotated[
        bool,
        typer.Option(
            "--new-inputs", help="Promote it although its inputs or outputs are other ones."
        ),
    ] = False,
    max_slowdown: Annotated[
        float,
        typer.Option(
            "--max-slowdown",
            metavar="RATIO",
            min=1.0,
            help="Largest ratio of the latencies beside the engines it replaces.",
        ),
    ] = 1.1,
    max_drop: Annotated[
        float,
        typer.Option(
            "--max-drop",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            help="Largest drop of the task's metric beside them, on the same evaluation data.",
        ),
    ] = 0.01,
    note: Note = None,
    revision: Revision = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be left out.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Give the whole fleet a version: pulls of the alias take it from now on, for all GPUs at once.

    It must have an engine that passed its gates for each GPU that the version before served, no slower and no
    less accurate than the one it replaces, as far as they can be compared, and the same inputs and outputs.
    Pulls without a version take ``prod``.
    """
    made = connect(url).promote(
        model,
        version,
        alias,
        partial=partial,
        new_inputs=new_inputs,
        note=note,
        max_slowdown=max_slowdown,
        max_drop=max_drop,
        revision=revision,
        dry_run=dry_run,
    )
    if as_json:
        show.document(made)
        return
    name = made.model or model
    _say(made, f"{name}@{alias.lower()}", again(f"farm rollback {name} {alias.lower()}", url))


def _say(made: Promotion, named: str, way_back: str) -> None:
    if made.before == made.version:
        show.line(f"{named} is v{made.version} already: nothing is moved, and no note is kept")
        return
    before = "" if made.before is None else f", before v{made.before}"
    is_now = "is now" if made.alias else "would be"
    show.line(f"{named} {is_now} v{made.version}{before}")
    rows = [
        (
            one.gpu,
            one.engine,
            one.what or show.NONE,
            one.replaces or show.NONE,
            latency(one),
            metric(one),
        )
        for one in made.engines
    ]
    headers = ("gpu", "engine", "what", "replaces", "latency", "metric")
    show.table(headers, rows, keep=("gpu", "engine", "what"))
    for change in made.changes:
        show.line(f"other inputs or outputs: {change}")
    for lack in made.left_out:
        show.line(f"left out: {lack.gpu}: {lack.why}")
    if made.alias and made.before is not None:
        show.line(f"the way back: {way_back}")


def rollback(
    model: ModelName,
    alias: Alias = PROD,
    note: Note = None,
    revision: Revision = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Give the fleet the version back that an alias named before its present one was promoted.

    Doing so again goes back one promotion further, never forward: `farm promote` does that.
    """
    view = connect(url).rollback(model, alias, note=note, revision=revision)
    if as_json:
        show.document(view)
        return
    show.line(f"{view.model}@{view.alias} is v{view.version} again")
    forward = again(f"farm promote {view.model} VERSION {view.alias}", url)
    moves = again(f"farm aliases {view.model} {view.alias}", url)
    show.line(f"the way forward: {forward}; what it has named: {moves}")


def aliases(
    model: ModelName,
    alias: Annotated[
        str | None,
        typer.Argument(
            metavar="[ALIAS]",
            help="Show this alias's history.",
            autocompletion=complete.aliases,
            show_default=False,
        ),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the alias; its history stays.")
    ] = False,
    wide: Wide = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List a model's aliases, or an alias's moves: who, when and why."""
    farm = connect(url)
    if delete and alias is None:
        raise typer.BadParameter("name the alias to delete", param_hint="ALIAS")
    if alias is None:
        _list(model, url, as_json=as_json, wide=wide)
        return
    if delete:
        farm.delete_alias(model, alias)
    moves = farm.alias_history(model, alias)
    if as_json:
        show.document(moves)
        return
    rows = [
        (
            str(move.revision),
            show.ago(move.at),
            str(move.action),
            show.NONE if move.before is None else f"v{move.before}",
            show.NONE if move.version is None else f"v{move.version}",
            move.by,
            move.note or show.NONE,
            ", ".join(lack.gpu for lack in move.left_out) or show.NONE,
        )
        for move in moves
    ]
    headers = ("revision", "when", "action", "from", "to", "by", "note", "left out")
    show.table(headers, rows, keep=("revision", "from", "to"), wide=wide)


def _list(model: str, url: str | None, *, as_json: bool, wide: bool) -> None:
    found = connect(url).aliases(model)
    if as_json:
        show.document(found)
        return
    rows = [
        (
            one.alias,
            f"v{one.version}",
            show.ago(one.changed_at),
            one.changed_by,
            one.note or show.NONE,
            str(one.revision),
        )
        for one in found
    ]
    empty = f"no aliases; make one: {again(f'farm promote {model} 1 {PROD}', url)}"
    headers = ("alias", "version", "changed", "by", "note", "revision")
    show.table(headers, rows, keep=("alias", "version"), empty=empty, wide=wide)
