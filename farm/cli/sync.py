"""``farm sync``: keeps a Triton repository at an alias."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, exits, show
from farm.cli.app import tell
from farm.cli.options import Json, Runtime, Url, connect, example, split
from farm.cli.pull import detected
from farm.cli.pull_triton import ForTriton, TritonBackend
from farm.errors import FarmError, InvalidRequest, TritonLoadFailed

if TYPE_CHECKING:
    from farm.client.sync import Sync, Synced

#: Before a model that Triton refused is tried again, unless the farm says another.
_REFUSED_S = 60.0


def register(app: typer.Typer) -> None:
    text = (
        "farm sync digits@prod --repository /models --triton-url http://localhost:8000 --gpu l4 "
        "--watch"
    )
    app.command(rich_help_panel="Engines", epilog=example(text))(sync)


def sync(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The model: digits@prod; without an alias, the version that pulls take.",
            autocompletion=complete.references,
        ),
    ],
    repository: Annotated[
        str,
        typer.Option(
            "--repository",
            metavar="DIR|URL",
            help="Triton's --model-repository: a folder, or a bucket such as s3://BUCKET/PREFIX.",
        ),
    ],
    triton_url: Annotated[
        str | None,
        typer.Option(
            "--triton-url",
            metavar="URL",
            help="Triton's HTTP address, in its model control mode explicit: it is told what to load.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch/--once", help="Follow the alias until Ctrl+C; or bring it up to date once."
        ),
    ] = False,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            metavar="TAG",
            help="The GPUs Triton serves on, repeated or comma-separated; by default this machine's.",
            autocompletion=complete.gpus,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="Only this precision.",
            autocompletion=complete.precisions,
        ),
    ] = None,
    runtime: Runtime = None,
    triton_backend: TritonBackend = None,
    for_triton: ForTriton = None,
    doubtful: Annotated[
        bool,
        typer.Option("--doubtful", help="Accept an engine that failed a gate if no other matches."),
    ] = False,
    interval_s: Annotated[
        float,
        typer.Option(
            "--interval", metavar="S", min=0.1, help="Seconds between looks at the alias."
        ),
    ] = 5.0,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Keep a Triton repository at an alias: promotions and rollbacks reach the servers by themselves.

    A new version is written beside the one that is served, loaded by Triton and waited for; only then the old
    one goes. If Triton can't load it, the old one goes on serving, and Triton's reason is told. With --json
    and --watch each change is a document on a line.
    """
    from farm.client.sync import Sync, Wish
    from farm.client.triton_server import TritonServer

    wish = Wish(
        model=model,
        gpus=split(gpu) or detected(),
        precision=precision,
        runtime=runtime,
        backend=triton_backend,
        for_triton=for_triton,
        doubtful=doubtful,
    )
    server = TritonServer(triton_url) if triton_url else None
    keeper = Sync(connect(url).http, wish, repository, server)
    if not watch:
        _say(keeper.once(), as_json=as_json)
        return
    with suppress(KeyboardInterrupt):
        _watch(keeper, interval_s, as_json=as_json)
    raise typer.Exit(exits.INTERRUPTED)


def _watch(keeper: Sync, interval_s: float, *, as_json: bool) -> None:
    """Bring the repository up to date again and again; what fails is told, and tried again.

    Raises:
        InvalidRequest: at the first look; the command line isn't right.
    """
    refused, again_at = "", 0.0
    told, is_first = "", True
    while True:
        config = ""
        try:
            wanted = keeper.wanted()
            config = wanted[0].config
            if config != refused or time.monotonic() > again_at:
                made = keeper.once(wanted)
                refused = told = ""
                if is_first or made.changed or made.loaded:
                    _say(made, as_json=as_json)
        except FarmError as err:
            if is_first and isinstance(err, InvalidRequest):
                raise
            if isinstance(err, TritonLoadFailed):
                refused, again_at = config, time.monotonic() + _REFUSED_S
            if err.detail != told:
                tell(err, as_json=as_json)
                told = err.detail
        is_first = False
        time.sleep(interval_s)


def _say(made: Synced, *, as_json: bool) -> None:
    if as_json:
        show.document(asdict(made))
    elif not made.changed:
        how = ", loaded again" if made.loaded else ""
        show.line(f"{made.name} is v{made.version}{how}")
    else:
        before = "" if made.before in (None, made.version) else f", before v{made.before}"
        show.line(f"{made.name} is now v{made.version}{before}: {', '.join(made.engines)}")
        show.line(f"  why: {made.why}")
        for note in made.notes:
            show.line(f"  {note}")
    sys.stdout.flush()
