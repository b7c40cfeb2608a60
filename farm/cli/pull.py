"""``farm pull``: download and verify the right engine for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import complete, registry, show, transfer
from farm.cli.options import (
    Json,
    ModelName,
    Pruned,
    Runtime,
    Url,
    Version,
    connect,
    example,
    split,
)
from farm.errors import InvalidRequest
from farm.machine import gpus

_NAME_ONE = "specify the engine's GPU: --gpu sm_89, or --gpu cpu for an engine that needs none"

if TYPE_CHECKING:
    from farm.client import Farm, Pulled
    from farm.schemas.engines import Match


def register(app: typer.Typer) -> None:
    text = "farm pull digits --gpu rtx-4090 --precision int8 -o engines"
    app.command(rich_help_panel="Engines", epilog=example(text))(pull)


def pull(
    model: ModelName,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            metavar="TAG",
            help="GPU tags, repeated or comma-separated; by default this machine's.",
            autocompletion=complete.gpus,
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="Precisions, repeated or comma-separated; by default the best by the goal of farm bench, "
            "else the fastest if measured, else the smallest.",
            autocompletion=complete.precisions,
        ),
    ] = None,
    runtime: Runtime = None,
    version: Version = None,
    prune: Pruned = None,
    doubtful: Annotated[
        bool,
        typer.Option("--doubtful", help="Accept an engine that failed a gate if no other matches."),
    ] = False,
    folder: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write to.")
    ] = Path(),
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Download a model's engine for a GPU, with its manifest beside it.

    A pruned engine is pulled only if ``--prune`` asks for it or the version has no other; a doubtful
    one, which failed a gate, only with ``--doubtful``.

    The bytes are verified before the file is renamed into place; interrupted downloads are resumed.
    """
    farm = connect(url)
    tags = split(gpu) or _detected()
    only = {"runtime": runtime, "version": version, "prune": prune, "doubtful": doubtful}
    matches = _matches(farm, model, tags, split(precision) or [None], only)
    found = [(tag, one) for tag, one in matches]
    with transfer.bar(hidden=as_json) as progress:
        pulled = [(tag, farm.fetch(one, folder, progress=progress)) for tag, one in found]
    if as_json:
        show.document([_document(tag, one) for tag, one in pulled])
        return
    for _, one in pulled:
        _say(one)


def _detected() -> list[str]:
    """This machine's distinct GPU tags: the product's, else the compute capability's."""
    try:
        found = gpus.look()
    except gpus.NoGpu as err:
        raise InvalidRequest(str(err), hint=_NAME_ONE) from err
    tags = list(dict.fromkeys(gpu.tag for gpu in found if gpu.tag))
    if not tags:
        raise InvalidRequest("found no NVIDIA GPU on this machine", hint=_NAME_ONE)
    return tags


def _matches(
    farm: Farm,
    model: str,
    tags: Sequence[str],
    precisions: Sequence[str | None],
    only: Mapping[str, Any],
) -> Iterator[tuple[str, Match]]:
    """The best match for each tag and precision, each engine once."""
    seen: set[str] = set()
    for tag in tags:
        for one in precisions:
            match = farm.match(model, tag, precision=one, **only)
            if match.engine.id not in seen:
                seen.add(match.engine.id)
                yield tag, match


def _say(pulled: Pulled) -> None:
    show.line(f"{pulled.path}  {show.size(pulled.engine.bytes)}  {pulled.engine.digest}")
    show.line(f"  why: {pulled.why}")
    show.line(f"  judged on: {show.judged_on(pulled.engine.accuracy)}")
    if pulled.engine.against is not None:
        show.line(f"  against {registry.against(pulled.engine)}")
    show.line(f"  runs on: {pulled.engine.runtime} {pulled.engine.runtime_version}")
    show.line("  verified" + ("" if pulled.fresh else "; already downloaded"))


def _document(tag: str, pulled: Pulled) -> dict[str, object]:
    return {
        "gpu": tag,
        "path": str(pulled.path),
        "manifest": f"{pulled.path}.json",
        "fresh": pulled.fresh,
        "why": pulled.why,
        "engine": pulled.engine,
    }
