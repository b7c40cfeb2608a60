"""``farm mirror``: another farm's version, copied and registered."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import show, transfer
from farm.cli.options import AcceptNewKey, Json, SigningKey, Url, connect, example
from farm.specs.counted import counted

if TYPE_CHECKING:
    from farm.schemas.mirrors import Registered

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
    copy_only: Annotated[
        bool,
        typer.Option("--copy-only", help="Only copy, for OCI clients: no pull finds it here."),
    ] = False,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Believe the other farm though it doesn't sign.")
    ] = False,
    new_inputs: Annotated[
        bool,
        typer.Option(
            "--new-inputs",
            help="Accept other inputs or outputs than those of this farm's version before it.",
        ),
    ] = False,
    signing_key: SigningKey = None,
    accept_new_key: AcceptNewKey = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Copy a version of another farm, and register it in this one: pulls and submissions find it here.

    Engines, source, reports and signatures go into a repository of this farm under the same digests. The
    other farm's signatures are verified first: --signing-key and --accept-new-key are about its key. What is
    there already isn't sent again. The other farm's API key is in FARM_FROM_KEY; FARM_KEY is never
    sent to it. This farm's needs the scope admin, or with --copy-only submit.
    """
    from farm.client.meant import Meant

    theirs = Meant(
        called="the farm to copy from", address="FROM_URL, the first argument,", key=FROM_KEY
    )
    # Never FARM_KEY: whoever runs the other farm could use it at this one.
    other = connect(
        origin,
        key=os.environ.get(FROM_KEY, "").strip(),
        signing_key=signing_key,
        accept_new_key=accept_new_key,
        meant=theirs,
    )
    with other, transfer.bar(hidden=as_json) as progress:
        made = connect(url, meant=Meant(called="the farm to copy to")).mirror(
            other.http,
            model,
            to=to,
            register=not copy_only,
            unsigned=unsigned,
            new_inputs=new_inputs,
            progress=progress,
        )
    if as_json:
        show.document(made)
        return
    show.line(f"{made.repository}:{made.tag} {made.digest}")
    size = show.size(made.bytes)
    show.line(f"{counted(made.manifests, 'manifest')}; {counted(made.blobs, 'blob')} ({size}) came")
    if made.registered is not None:
        _show(made.registered)


def _show(made: Registered) -> None:
    new = sum(one.is_new for one in made.engines)
    name = f"{made.model}@{made.version}"
    show.line(f"{name} has {len(made.engines)} of its engines here, {new} of them new")
    for one in made.left_out:
        show.line(f"  left out {one.origin}: {one.why}")
