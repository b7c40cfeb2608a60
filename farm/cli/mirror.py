"""``farm mirror``: another farm's version, copied."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from farm.cli import show, transfer
from farm.cli.options import Json, Url, connect, example

#: No option: what is on a command line, every user of the machine can see.
FROM_KEY = "FARM_FROM_KEY"


def register(app: typer.Typer) -> None:
    text = "farm mirror https://farm.example.com digits@prod"
    app.command(rich_help_panel="Engines", epilog=example(text))(mirror)


def mirror(
    origin: Annotated[str, typer.Argument(metavar="FROM_URL", help="The other farm's address.")],
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Its model: digits, digits@prod, digits@7.")
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="REPOSITORY", help="Where to; by default mirror/ and its repository."
        ),
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Copy a version of another farm: engines, source, reports and signatures, under the same digests.

    Goes into a repository of this farm, for OCI clients. What is there already isn't sent again. The other
    farm's key is in FARM_FROM_KEY; FARM_KEY is never sent to it.
    """
    from farm.client import Farm

    # Never FARM_KEY: whoever runs the other farm could use it at this one.
    key = os.environ.get(FROM_KEY, "").strip()
    with Farm(origin, key=key) as other, transfer.bar(hidden=as_json) as progress:
        made = connect(url).mirror(other.http, model, to=to, progress=progress)
    if as_json:
        show.document(made)
        return
    show.line(f"{made.repository}:{made.tag} {made.digest}")
    size = show.size(made.bytes)
    show.line(f"{made.manifests} manifests; {made.blobs} blobs ({size}) weren't here yet")
