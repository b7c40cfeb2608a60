"""``farm open``: the farm's page in a browser."""

from __future__ import annotations

import webbrowser
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, connect, example
from farm.errors import NotFound

if TYPE_CHECKING:
    from farm.client import Farm


def register(app: typer.Typer) -> None:
    app.command("open", rich_help_panel="Builds", epilog=example("farm open digits"))(open_page)


def open_page(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|BUILD]",
            help="A model's name, or a build's id or its first characters; by default what the farm does "
            "now.",
            autocompletion=complete.models,
        ),
    ] = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the link instead, which works once.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Open the farm's page in this machine's browser, logged in with your key.

    The link works once, within two minutes; the browser stays logged in for twelve hours.
    """
    with connect(url) as farm:
        link = farm.login_link(_path(farm, what))
    if as_json:
        show.document(link)
    elif only_print or not webbrowser.open(link.url):
        show.line(link.url)


def _path(farm: Farm, what: str | None) -> str:
    if what is None:
        return "/"
    try:
        return f"/models/{quote(farm.model(what).name, safe='')}"
    except NotFound:
        return f"/builds/{farm.build(what).id}"
