"""``farm plugins``: the TensorRT plugin libraries that builds may use."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated

import typer

from farm.cli import show, transfer
from farm.cli.options import Json, Url, again, connect, example

_plugins = typer.Typer(help="Manage TensorRT plugin libraries.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    text = "farm plugins add libfoo.so --signature libfoo.so.sig"
    _plugins.command("add", epilog=example(text))(add)
    _plugins.command("list", epilog=example("farm plugins list"))(list_plugins)
    app.add_typer(_plugins, name="plugins", rich_help_panel="Fleet")


def add(
    library: Annotated[Path, typer.Argument(metavar="LIBRARY", help="The shared library.")],
    signature: Annotated[
        Path,
        typer.Option(
            "--signature",
            metavar="FILE",
            help="Its Ed25519 signature: the 64 bytes from openssl pkeyutl -sign -rawin.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The library's name; by default the file's."),
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Allow a library that an operator has signed with a key in FARM_PLUGIN_KEYS."""
    signed = base64.b64encode(signature.read_bytes()).decode()
    with transfer.bar(hidden=as_json) as progress:
        added = connect(url).add_plugin(library, signed, name=name, progress=progress)
    if as_json:
        show.document(added)
        return
    show.line(f"{added.name} {added.digest}")
    command = f"farm submit MODEL_FILE --gpu tensorrt:h200 --option plugins={added.digest}"
    show.line(f"to build with it: {again(command, url)}")


def list_plugins(as_json: Json = False, url: Url = None) -> None:
    """List the libraries that builds may use, and the key each is signed with."""
    found = connect(url).plugins()
    if as_json:
        show.document(found)
        return
    rows = [
        (one.name, one.digest, show.size(one.bytes), one.key, show.ago(one.created_at))
        for one in found
    ]
    empty = f"no plugins; add one: {again('farm plugins add LIBRARY --signature FILE', url)}"
    headers = ("name", "digest", "size", "signed by", "added")
    show.table(headers, rows, keep=("digest",), empty=empty)
