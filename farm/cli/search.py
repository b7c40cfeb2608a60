"""``farm search``: what in the farm has this name, label, note, digest or id."""

from __future__ import annotations

from typing import Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import Json, LabelFilters, Url, Wide, connect, example, split


def register(app: typer.Typer) -> None:
    text = "farm search resnet team=vision --since 2026-11-01"
    app.command(rich_help_panel="Engines", epilog=example(text))(search)


def search(
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUERY]...",
            help="Words: part of a name or a note, the beginning of a digest or an id, or a label.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="Only model, version, engine or build, repeated or comma-separated.",
            autocompletion=complete.kinds,
        ),
    ] = None,
    label: LabelFilters = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only from this day or time on.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="TIME", help="Only to this day, or before this time."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Maximum number of results.")] = 50,
    wide: Wide = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Find models, versions, engines and builds by name, label, note, digest, id or date.

    All words must match. A digest needs 8 digits; it finds engines, sources, and builds by their data.
    """
    found = connect(url).search(
        " ".join(query or ()),
        kinds=split(kind),
        labels=label or (),
        since=since,
        until=until,
        limit=limit,
    )
    if as_json:
        show.document(found)
        return
    rows = [
        (
            str(one.kind),
            one.id,
            "" if one.version is None or one.kind == "version" else f"{one.model}@{one.version}",
            one.about,
            show.ago(one.created_at),
            ", ".join(filter(None, (show.labels(one.labels), one.note))) or show.NONE,
        )
        for one in found
    ]
    headers = ("kind", "id", "of", "what", "created", "labels and note")
    show.table(headers, rows, keep=("kind", "id"), empty="nothing matches", wide=wide)
