"""``farm store``: where the farm's artifacts are, and whether that works."""

from __future__ import annotations

import typer

from farm.cli import exits, show
from farm.cli.options import Json, Url, connect, example


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Fleet", epilog=example("farm store"))(store)


def store(as_json: Json = False, url: Url = None) -> None:
    """Show the farm's artifact store, and whether it can be read and written.

    Exits with 1 if it can't. To check a worker's own way to it: farm worker --check-store.
    """
    found = connect(url).store()
    if as_json:
        show.document(found)
    else:
        free = "" if found.free_bytes is None else f", {show.size(found.free_bytes)} free"
        print(f"store  {found.address}{free}")
        print(f"id     {found.id or 'none'}")
        if found.problem is None:
            print("state  ok")
        else:
            print(f"state  {found.problem.detail}\nhint   {found.problem.hint or 'none'}")
    if found.problem is not None:
        raise typer.Exit(exits.FAILED)
