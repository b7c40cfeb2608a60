"""``farm submit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show, transfer
from farm.cli.options import (
    Json,
    Url,
    again,
    builder_options,
    connect,
    example,
    fixed_inputs,
    labels,
    profiles,
    split,
)
from farm.cli.watch import watch_build
from farm.errors import InvalidRequest

if TYPE_CHECKING:
    from farm.schemas.builds import BuildView

_EXAMPLE = (
    "farm submit digits.pt2 --gpu sm_89,rtx-5090 --precision fp16,int8 "
    "--calibration digits-calibration.npz --evaluation digits-evaluation.npz --max-drop 0.01 --wait"
)


def register(app: typer.Typer) -> None:
    app.command("submit", rich_help_panel="Builds", epilog=example(_EXAMPLE))(submit)
    trtexec = (
        "farm import-trtexec 'trtexec --onnx=resnet50.onnx --fp16 --saveEngine=resnet50.engine'"
    )
    app.command("import-trtexec", rich_help_panel="Builds", epilog=example(trtexec))(import_trtexec)


def submit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_FILE",
            help="An .onnx, torch.export .pt2, TorchScript or .safetensors file, a SavedModel folder, or the "
            "digest of an earlier upload.",
        ),
    ],
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            "--target",
            metavar="TAG",
            help="GPU tags or RUNTIME:TAG, repeated or comma-separated: sm_89, rtx-4090, cpu, "
            "tensorrt-rtx:sm_120, torchscript:cpu.",
            autocompletion=complete.gpus,
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="fp32, fp16, bf16, int8, fp8, int8-dynamic, repeated or comma-separated; by default fp16.",
            autocompletion=complete.precisions,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The model's name; by default the file's."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration", metavar="FILE", help="Samples for int8 and fp8: .npz or .safetensors."
        ),
    ] = None,
    calibration_method: Annotated[
        str, typer.Option("--calibration-method", metavar="METHOD", help="entropy or max.")
    ] = "entropy",
    calibration_batch_size: Annotated[
        int,
        typer.Option(
            "--calibration-batch-size",
            metavar="N",
            min=1,
            max=4096,
            help="Samples per batch; entropy needs at least two batches.",
        ),
    ] = 8,
    evaluation: Annotated[
        str | None,
        typer.Option(
            "--evaluation",
            metavar="FILE",
            help="Evaluation samples, optionally with labels: .npz or .safetensors.",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="METRIC", help="The task's metric: top1.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop", metavar="SHARE", min=0, max=1, help="Largest allowed drop of the metric."
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            "--min-agreement",
            metavar="SHARE",
            min=0,
            max=1,
            help="Mark engines doubtful whose classes, integers or items agree less with the source's.",
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            metavar="RATIO",
            min=0,
            help="Mark engines doubtful whose floats have a larger error: RMS error over standard deviation.",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="INPUT=MIN:OPT:MAX",
            help="An input's shapes: image=1x1x8x8:8x1x8x8:64x1x8x8. Repeat for other inputs.",
        ),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(
            "--fix",
            metavar="NAME=VALUE",
            help="Fix an input to a constant value: sr=16000, size=[640,480]. Repeat for more.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="TensorRT builder option: tf32=false, builder_optimization_level=5, … Repeat for more.",
            autocompletion=complete.builder_options,
        ),
    ] = None,
    prune: Annotated[
        str | None,
        typer.Option(
            "--prune",
            metavar="METHOD",
            help="Prune the model first: 2:4 for TensorRT's sparse kernels, or l1 with a fraction: l1:0.5.",
            autocompletion=complete.prunings,
        ),
    ] = None,
    priority: Annotated[
        int, typer.Option("--priority", min=0, max=9, help="Priority; 9 is the most urgent.")
    ] = 5,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Label the build. Repeat for more."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            metavar="KEY",
            help="Resubmitting with the same key returns the first build.",
        ),
    ] = None,
    source_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="onnx, pt2, torchscript, savedmodel, safetensors; by default detected.",
        ),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            metavar="LIBRARY:NAME",
            help="Model class of .safetensors weights: transformers:BertModel.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="The architecture's config.json."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the build until it ends.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Submit a model: every precision for every GPU. Finished and running jobs are reused."""
    targets = split(gpu)
    if not targets:
        raise InvalidRequest(
            "no GPU given", hint="pass one: --gpu sm_89 (see farm targets; cpu works too)"
        )
    farm = connect(url)
    with transfer.bar(hidden=as_json) as progress:
        build = farm.submit(
            source,
            targets=targets,
            precisions=split(precision) or ["fp16"],
            name=name,
            format=source_format,
            architecture=architecture,
            config=config,
            calibration=calibration,
            calibration_method=calibration_method,
            calibration_batch_size=calibration_batch_size,
            evaluation=evaluation,
            metric=metric,
            max_drop=max_drop,
            min_agreement=min_agreement,
            max_error=max_error,
            profiles=profiles(profile),
            fixed_inputs=fixed_inputs(fix),
            options=builder_options(option),
            prune=prune,
            priority=priority,
            labels=labels(label),
            idempotency_key=idempotency_key,
            progress=progress,
        )
    if not as_json:
        _say(build.view, url, waiting=wait)
    if wait:
        raise typer.Exit(watch_build(build, url, as_json=as_json, only_end=as_json))
    if as_json:
        show.document(build.view)


def import_trtexec(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="A complete trtexec command line, quoted.")
    ],
    as_json: Json = False,
) -> None:
    """Convert a trtexec command line into a farm command, and note where the farm differs.

    Nothing is submitted: add the GPUs to the printed command.
    """
    from dataclasses import asdict

    from farm.cli import trtexec

    found = trtexec.parse(command)
    if as_json:
        show.document(asdict(found) | {"command": found.command()})
        return
    show.line(f"{found.command()} --gpu …")
    for note in found.notes:
        show.line(f"  {note}")


def _say(view: BuildView, url: str | None, *, waiting: bool) -> None:
    show.line(f"build {view.id} of {view.model} v{view.version}: {view.state}")
    rows = [(want.asked, want.target, str(want.precision), want.why) for want in view.engines]
    show.table(("asked", "target", "precision", "why"), rows, keep=("asked", "target", "precision"))
    reused = sum(job.reuse != "ran" for job in view.jobs)
    show.line(f"{view.jobs_total} jobs, {reused} of them reused")
    for missing in dict.fromkeys(job.waits_for for job in view.jobs if job.waits_for):
        show.line(f"waits for {missing}")
    if waiting:
        return
    pruned = f" --prune {view.prune}" if view.prune else ""
    from farm.specs.runtime import Target

    tag = Target.parse(view.engines[0].target).gpu
    pull = f"farm pull {view.model} --gpu {tag}{pruned} -o engines"
    for what, command in (
        ("to watch it:", f"farm watch {view.id}"),
        ("why jobs ran:", f"farm explain {view.id}"),
        ("to cancel it:", f"farm cancel {view.id}"),
        ("when it's done:", pull),
    ):
        show.line(f"  {what:<20}{again(command, url)}")
