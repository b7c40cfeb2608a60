"""``farm yank``: keep a version or an engine from being pulled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, again, connect, example
from farm.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.schemas.engines import EngineView
    from farm.schemas.models import ModelDetail


def register(app: typer.Typer) -> None:
    text = 'farm yank digits@7 --reason "trained on test data"'
    app.command(rich_help_panel="Engines", epilog=example(text))(yank)


def yank(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL@VERSION|ENGINE",
            help="digits@7, digits@canary, or an engine's id.",
            autocompletion=complete.references,
        ),
    ],
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="TEXT", help="What those who pull it are told."),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Have pulls take it again.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Have no pull take a version or an engine by default; its bytes stay.

    A version is pulled only by its number from then on, an engine only by its id, and both with the reason.
    Pulls of an alias that names a yanked version fail until it is moved: roll it back first.
    """
    if undo == (reason is not None):
        raise InvalidRequest(
            "a yank takes a reason", hint='pass --reason "…", or --undo to take a yank back'
        )
    farm = connect(url)
    view: ModelDetail | EngineView
    named: list[str] = []
    if "@" in what:
        name, number = farm.version_of(what)
        assert number is not None
        view = farm.unyank(name, number) if reason is None else farm.yank(name, number, reason)
        what = f"{view.name}@{number}"
        named = [one.alias for one in view.aliases if one.version == number]
    else:
        view = _engine(farm, what, reason)
        what = view.id
    if as_json:
        show.document(view)
        return
    show.line(f"{what} is pulled again" if undo else f"{what} is yanked: {reason}")
    if reason is not None:
        for alias in named:
            model = what.partition("@")[0]
            way_out = again(f"farm rollback {model} {alias}", url)
            show.line(f"{alias} names it: its pulls fail until it is moved: {way_out}")


def _engine(farm: Farm, what: str, reason: str | None) -> EngineView:
    try:
        return farm.unyank_engine(what) if reason is None else farm.yank_engine(what, reason)
    except NotFound as err:
        hint = "`farm engines MODEL` lists them; a version is named like digits@7"
        raise NotFound(err.detail, hint=hint) from err
