"""``farm submit``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import complete, forecast, naming, show, traced, transfer
from farm.cli.options import (
    Json,
    Timeout,
    Url,
    again,
    builder_options,
    connect,
    default_precisions,
    example,
    fixed_inputs,
    labels,
    output_errors,
    page,
    profiles,
    split,
    targets,
    task_options,
)
from farm.cli.patience import check_timeout
from farm.cli.preprocessing import preprocess_of
from farm.cli.submission import (
    ArchitectureName,
    CalibrationBatchSize,
    CalibrationBudget,
    CalibrationData,
    CalibrationMethod,
    CalibrationPercentile,
    Config,
    DryRunOnly,
    EvaluationData,
    Fixed,
    IdempotencyKey,
    ImagePreprocess,
    KeepFloat,
    KeepQuantized,
    Labels,
    MaxDrop,
    MaxError,
    MaxLatencyRatio,
    MaxOutputError,
    Metric,
    MinAgreement,
    Name,
    NewInputs,
    Options,
    Priority,
    Profiles,
    Prune,
    SourceFormat,
    Task,
    VersionNote,
)
from farm.cli.watch import watch_build
from farm.errors import InvalidRequest
from farm.specs.accuracy_goal import BUDGET_S
from farm.specs.counted import counted

if TYPE_CHECKING:
    from farm.client import Build
    from farm.schemas.builds import BuildView
    from farm.schemas.forecast import DryRun

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
            help="An .onnx, torch.export .pt2, TorchScript or .safetensors file; a folder of a SavedModel, "
            "of ONNX or of weights with their config.json, as hubs have them; or the digest of an earlier "
            "upload.",
        ),
    ],
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            "--target",
            metavar="TARGET",
            help="GPU tags or RUNTIME:TAG, repeated or comma-separated: sm_89, rtx-4090, cpu, "
            "tensorrt-rtx:sm_120, torchscript:cpu. Each may name its own precisions: t4:fp16, h100:fp8,int8.",
            autocompletion=complete.targets,
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="fp32, fp16, bf16, int8, fp8, int8-dynamic, repeated or comma-separated; by default fp16. "
            "Targets that name their own precisions don't take these.",
            autocompletion=complete.precisions,
        ),
    ] = None,
    skip_unsupported: Annotated[
        bool,
        typer.Option(
            "--skip-unsupported",
            help="Leave out what can't be built, such as bf16 for a T4, and say what and why.",
        ),
    ] = False,
    name: Name = None,
    calibration: CalibrationData = None,
    calibration_method: CalibrationMethod = "auto",
    calibration_percentile: CalibrationPercentile = None,
    calibration_batch_size: CalibrationBatchSize = 8,
    preprocess: ImagePreprocess = None,
    calibration_budget: CalibrationBudget = BUDGET_S,
    keep_float: KeepFloat = None,
    keep_quantized: KeepQuantized = None,
    evaluation: EvaluationData = None,
    metric: Metric = None,
    max_drop: MaxDrop = None,
    max_latency_ratio: MaxLatencyRatio = None,
    task: Task = None,
    min_agreement: MinAgreement = None,
    max_error: MaxError = None,
    max_output_error: MaxOutputError = None,
    profile: Profiles = None,
    fix: Fixed = None,
    option: Options = None,
    prune: Prune = None,
    priority: Priority = 5,
    label: Labels = None,
    note: VersionNote = None,
    new_inputs: NewInputs = False,
    idempotency_key: IdempotencyKey = None,
    source_format: SourceFormat = None,
    architecture: ArchitectureName = None,
    config: Config = None,
    dry_run: DryRunOnly = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the build until it ends.")] = False,
    timeout: Timeout = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Submit a model: every precision for every GPU. Finished and running jobs are reused."""
    check_timeout(timeout, waits=wait)
    wanted = targets(gpu)
    if not wanted:
        raise InvalidRequest(
            "no GPU given", hint="pass one: --gpu sm_89 (see farm targets; cpu works too)"
        )
    if dry_run and (wait or idempotency_key):
        raise InvalidRequest(
            "a dry run submits nothing", hint="leave out --wait and --idempotency-key, or --dry-run"
        )
    farm = connect(url)

    def options(name: str | None) -> dict[str, Any]:
        return {
            "targets": wanted,
            "precisions": split(precision) or default_precisions(wanted),
            "skip_unsupported": skip_unsupported,
            "name": name,
            "format": source_format,
            "architecture": architecture,
            "config": config,
            "calibration": calibration,
            "calibration_method": calibration_method,
            "calibration_percentile": calibration_percentile,
            "calibration_batch_size": calibration_batch_size,
            "preprocess": preprocess_of(preprocess),
            "calibration_budget_s": calibration_budget,
            "keep_float": keep_float or (),
            "keep_quantized": keep_quantized or (),
            "evaluation": evaluation,
            "metric": metric,
            "max_drop": max_drop,
            "max_latency_ratio": max_latency_ratio,
            "task": task_options(task),
            "min_agreement": min_agreement,
            "max_error": max_error,
            "output_errors": output_errors(max_output_error),
            "profiles": profiles(profile),
            "fixed_inputs": fixed_inputs(fix),
            "options": builder_options(option),
            "prune": prune,
            "priority": priority,
            "labels": labels(label),
            "note": note,
            "new_inputs": new_inputs,
        }

    def foretold(name: str | None) -> DryRun:
        with transfer.bar(hidden=as_json) as progress:
            return farm.dry_run(source, progress=progress, **options(name))

    def submitted(name: str | None) -> Build:
        with transfer.bar(hidden=as_json) as progress:
            return farm.submit(
                source, idempotency_key=idempotency_key, progress=progress, **options(name)
            )

    if dry_run:
        forecast.show_dry_run(naming.named(foretold, name, as_json=as_json), as_json=as_json)
        return
    with traced.command("submit"):
        build = naming.named(submitted, name, as_json=as_json)
    if not as_json:
        naming.explain(build)
        _say(build.view, url, waiting=wait)
    if wait:
        code = watch_build(build, url, as_json=as_json, only_end=as_json, timeout=timeout)
        raise typer.Exit(code)
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
    for warning in dict.fromkeys(want.warning for want in view.engines if want.warning):
        show.note(f"warning: {warning}")
    show.left_out(view.left_out)
    for warning in view.warnings:
        show.note(f"warning: {warning}")
    reused = sum(job.reuse != "ran" for job in view.jobs)
    show.line(f"{counted(view.jobs_total, 'job')}, {reused} of them reused")
    for missing in dict.fromkeys(job.waits_for for job in view.jobs if job.waits_for):
        show.line(f"waits for {missing}")
    if waiting:
        return
    pruned = f" --prune {view.prune}" if view.prune else ""
    from farm.specs.runtime import Target

    tag = Target.parse(view.engines[0].target).gpu
    pull = f"farm pull {view.model}@{view.version} --gpu {tag}{pruned} -o engines"
    explain = ("why jobs ran:", f"farm explain {view.id}")
    running = [
        ("to watch it:", f"farm watch {view.id}"),
        explain,
        ("to cancel it:", f"farm cancel {view.id}"),
        ("when it's done:", pull),
    ]
    # Everything was there already.
    done = [explain, ("to pull it:", pull)]
    show.line(f"  {'on the page:':<20}{page(view.id, url)}")
    for what, command in done if view.state == "succeeded" else running:
        show.line(f"  {what:<20}{again(command, url)}")
