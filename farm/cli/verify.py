"""``farm verify``: whether a file is an engine of a farm, offline."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import exits, show, transfer
from farm.cli.options import Json, example

if TYPE_CHECKING:
    from farm.client.verify import Verified

_CODES = {
    "verified": exits.OK,
    "refused": exits.FAILED,
    "unknown-key": exits.USAGE,
    "unsigned": exits.NOT_FOUND,
}
_ADVICE = {
    "refused": "don't use it unless you know why; farm pull fetches it again",
    "unknown-key": "name the farm's key if you have it from its operator: --key sha256:… or --key FILE",
    "unsigned": "name its signature if it is elsewhere: --bundle FILE; or ask the farm: farm which FILE",
}


def register(app: typer.Typer) -> None:
    text = "farm verify digits-v1-fp16-sm_89.engine"
    app.command(rich_help_panel="Engines", epilog=example(text))(verify)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An engine's file.")],
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="FILE",
            help="Its signature; by default NAME.sigstore beside it, else NAME.sig.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="FILE|FINGERPRINT",
            help="The farm's public signing key; by default those of all farms that you have pulled from.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a file is, and whether a farm has signed exactly this file. Nothing is loaded or sent.

    Exit codes: 0 a known key has signed it; 1 it, its manifest or its signature isn't what was signed;
    2 its signature is by a key that isn't known here; 3 there is no signature of it.
    """
    from farm.client.verify import verify_file

    with transfer.bar(hidden=as_json) as progress:
        found = verify_file(file, bundle=bundle, key=key, progress=progress)
    if as_json:
        paths = {"file": str(found.file), "bundle": found.bundle and str(found.bundle)}
        show.document(asdict(found) | paths | {"engine": found.engine})
    else:
        _say(found)
    raise typer.Exit(_CODES[found.verdict])


def _say(found: Verified) -> None:
    show.line(f"{found.file}  {show.size(found.bytes)}  {found.digest}")
    show.line(f"  it is {found.kind}")
    if found.engine is not None:
        one = found.engine
        made = f"{one.precision} by {one.runtime} {one.runtime_version} for {one.gpu}"
        show.line(f"  engine {one.id}: {one.model}@{one.version}, {made}")
        for name, digest in (found.materials or {}).items():
            show.line(f"  {name}: {digest}")
    known = f", known of {found.farm}" if found.farm else ""
    show.line(f"  {found.verdict}: {found.why}{known}")
    advice = _ADVICE.get(found.verdict)
    if advice is not None:
        show.note(f"hint: {advice}")
