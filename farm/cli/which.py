"""``farm which``: what a file is to the farm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import show, transfer
from farm.cli.options import Json, Url, connect, example

if TYPE_CHECKING:
    from farm.schemas.engines import EngineView
    from farm.schemas.uses import BlobUses


def register(app: typer.Typer) -> None:
    text = "farm which digits-v1-fp16-sm_89.engine"
    app.command(rich_help_panel="Engines", epilog=example(text))(which)


def which(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file, or a digest: sha256:…")],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Say what a file is: which engine of which version, a model's source, or data of builds.

    Only its digest is sent. A file that the farm doesn't know is an error.
    """
    with transfer.bar(hidden=as_json) as progress:
        found = connect(url).which(file, progress=progress)
    if as_json:
        show.document(found)
        return
    show.line(f"{found.digest}  {show.size(found.bytes)}")
    for engine in found.engines:
        show.line(f"  engine {engine.id}: {_engine(engine, found)}")
    for source in found.sources:
        of = f"{source.model}@{source.version}"
        show.line(f"  source of {of}{_more(source.aliases, source.yanked)}")
    for data in found.data:
        show.line(f"  {data.role} data of build {data.build} of {data.model}@{data.version}")
    for other in found.others:
        show.line(f"  {other}")
    if not (found.engines or found.sources or found.data or found.others):
        show.line("  nothing in the registry refers to it")


def _engine(engine: EngineView, found: BlobUses) -> str:
    version = f"{engine.model}@{engine.version}"
    named = _more(found.aliases.get(version, []), engine.yanked)
    kind = f"{engine.precision} by {engine.runtime} {engine.runtime_version} for {engine.gpu}"
    return f"{version}{named}, {kind}, {engine.state}"


def _more(aliases: list[str], yanked: str | None) -> str:
    named = f" ({', '.join(aliases)})" if aliases else ""
    return named + (f", yanked: {yanked}" if yanked else "")
