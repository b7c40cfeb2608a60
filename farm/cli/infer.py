"""``farm infer``: run an engine on one of the farm's workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farm.cli import complete, show, traced, transfer
from farm.cli.options import Gpu, Json, Precision, Runtime, Url, Version, connect, example
from farm.specs import durations
from farm.specs.inference import EXAMPLE


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Engines", epilog=example(EXAMPLE))(infer)


def infer(
    inputs: Annotated[
        Path,
        typer.Option(
            "--input",
            metavar="FILE",
            help="One array an input, all of one batch: .npz, .npy or .safetensors.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="digits, digits@7, digits@prod.",
            autocompletion=complete.references,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the outputs here, as .npz."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="ID", help="Exactly the engine with this id."),
    ] = None,
    gpu: Gpu = None,
    precision: Precision = None,
    runtime: Runtime = None,
    version: Version = None,
    timeout: Annotated[
        str,
        typer.Option("--timeout", metavar="DURATION", help="Give up after this long: 90s, 5m."),
    ] = "5m",
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Run an engine once on a worker that can, as a quick check, and show what it gives.

    By default the engine of a GPU that an online worker has, else the CPU's. It isn't a measurement, and no
    way to serve a model: inputs and outputs are limited to 256 MiB each.
    """
    farm = connect(url)
    with traced.command("infer"), transfer.bar(hidden=as_json) as progress:
        made = farm.infer(
            model,
            inputs,
            output,
            engine=engine,
            gpu=gpu,
            precision=precision,
            runtime=runtime,
            version=version,
            timeout=durations.parse(timeout),
            progress=progress,
        )
    view = made.view
    if as_json:
        told = {"engine": made.engine, "why": made.why}
        written = {"output": None if made.path is None else str(made.path)}
        show.document(view.model_dump(mode="json") | told | written)
        return
    show.line(f"engine {made.engine} on {view.target}: {made.why}")
    rows = [(one.name, one.dtype, "x".join(map(str, one.shape))) for one in view.outputs]
    show.table(("output", "type", "shape"), rows, keep=("output", "shape"))
    if made.path is not None:
        show.line(str(made.path))
