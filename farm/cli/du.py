"""``farm du``: what takes the store's disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, connect, example

if TYPE_CHECKING:
    from farm.schemas.usage import Usage


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Fleet", epilog=example("farm du digits"))(du)


def du(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="List this model alone.", autocompletion=complete.models
        ),
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show what takes disk space, by kind and by model, and what gc would free now.

    A file that several models share counts once in the total, and for each of them as shared.
    """
    found = connect(url).usage(model)
    if as_json:
        show.document(found)
        return
    if model is None:
        rows = [
            (kind.replace("-", " "), str(files.files), show.size(files.bytes))
            for kind, files in found.kinds.items()
            if files.files
        ]
        rows.append(("total", str(found.files), show.size(found.bytes)))
        show.table(("kind", "files", "size"), rows, keep=("kind", "size"))
        show.line()
    _models(found)
    if model is None:
        _rest(found)


def _models(found: Usage) -> None:
    rows = [
        (
            one.model,
            show.size(one.bytes),
            show.size(one.shared_bytes) if one.shared_bytes else show.NONE,
            ", ".join(
                f"{kind.replace('-', ' ')} {show.size(files.bytes)}"
                for kind, files in one.kinds.items()
                if files.files
            ),
        )
        for one in found.models
    ]
    headers = ("model", "size", "of it shared", "kinds")
    show.table(headers, rows, keep=("model", "size"), empty="no model takes any")


def _rest(found: Usage) -> None:
    show.line()
    show.line(f"logs, in the database: {show.size(found.log_bytes)}")
    uploads = found.interrupted_uploads
    if uploads.files:
        show.line(f"unfinished uploads: {uploads.files} ({show.size(uploads.bytes)})")
    unused = found.unused_uploads
    if unused.files:
        most = found.unused_limit_bytes
        limit = "" if most is None else f"; a key may hold {show.size(most)}"
        show.line(f"uploads that no build uses: {unused.files} ({show.size(unused.bytes)}){limit}")
    show.line(f"farm gc would free {show.size(found.gc.bytes)} now")
    if found.free_bytes is not None:
        show.line(f"free on the store's disk: {show.size(found.free_bytes)}")
