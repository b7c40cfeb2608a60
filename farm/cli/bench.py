"""``farm bench``: every engine of a model for a GPU in one table, and the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from farm.cli import complete, exits, forecast, naming, show, transfer, watch
from farm.cli.options import (
    Json,
    Url,
    Version,
    Wide,
    again,
    builder_options,
    connect,
    example,
    fixed_inputs,
    labels,
    output_errors,
    page,
    profiles,
    split,
    task_options,
)
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
    SourceFormat,
    Task,
    VersionNote,
)
from farm.errors import InvalidRequest
from farm.specs.accuracy_goal import BUDGET_S
from farm.specs.counted import counted

if TYPE_CHECKING:
    from farm.client import Build, Farm
    from farm.schemas.bench import Bench, BenchRow
    from farm.schemas.forecast import DryRun

_EXAMPLE = (
    "farm bench resnet50.pt2 --gpu h100 --calibration samples.npz --evaluation labelled.npz "
    "--goal latency --batch 8"
)
_HEADERS = (
    "",
    "target",
    "precision",
    "state",
    "p50",
    "accuracy",
    "samples/s",
    "size",
    "over PyTorch's best",
    "engine",
    "note",
)
_KEEP = ("", "target", "precision", "state")


def register(app: typer.Typer) -> None:
    app.command("bench", rich_help_panel="Builds", epilog=example(_EXAMPLE))(bench)


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A file as in farm submit, or the name of a model that the farm has.",
            autocompletion=complete.models_and_files,
        ),
    ],
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="TAG",
            help="The GPU: h100, sm_89, cpu.",
            autocompletion=complete.gpus,
        ),
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(
            "--goal",
            metavar="GOAL",
            help="latency or throughput; pulls for this GPU follow it. By default the goal set before, "
            "else latency.",
            autocompletion=complete.goals,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            help="The batch to rank at; by default the profile's opt, or for throughput the best.",
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="Only these precisions, repeated or comma-separated; by default every one.",
            autocompletion=complete.precisions,
        ),
    ] = None,
    build: Annotated[
        bool, typer.Option("--build/--no-build", help="Build what is missing, or only show.")
    ] = True,
    wait_for_workers: Annotated[
        bool,
        typer.Option("--all", help="Also wait for what no online worker can build."),
    ] = False,
    version: Version = None,
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
    priority: Priority = 5,
    label: Labels = None,
    note: VersionNote = None,
    new_inputs: NewInputs = False,
    idempotency_key: IdempotencyKey = None,
    source_format: SourceFormat = None,
    architecture: ArchitectureName = None,
    config: Config = None,
    dry_run: DryRunOnly = False,
    wide: Wide = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Build a model in every runtime and precision for a GPU, and show which engine is best.

    Only engines that passed their gates can win, and only figures that can be compared decide; farm pull
    takes the winner. Finished and running jobs are reused. Of a model that the farm has, what is missing
    is built with the data and profiles of its builds.

    Exits with 1 if no engine could be built, and with 5 if none passed its gates.
    """
    from farm.client.benches import is_file

    if not gpu:
        raise InvalidRequest("no GPU given", hint="pass one: --gpu h100 (see farm targets; or cpu)")
    of_files = {
        "name": name,
        "format": source_format,
        "architecture": architecture,
        "config": config,
        "fixed_inputs": fixed_inputs(fix) or None,
        "note": note,
        "new_inputs": new_inputs or None,
    }
    if dry_run and (idempotency_key or not build):
        raise InvalidRequest(
            "a dry run submits nothing",
            hint="leave out --no-build and --idempotency-key, or --dry-run",
        )
    farm = connect(url)
    if not build:
        if is_file(model):
            raise InvalidRequest(
                f"{model} is a file: --no-build shows a model that the farm has",
                hint="pass the model's name (farm models lists them)",
            )
        found = farm.bench_table(model, gpu, goal=goal, batch=batch, version=version)
        raise typer.Exit(_show(found, None, as_json=as_json, wide=wide, url=url))
    submission: dict[str, Any] = {
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
        "options": builder_options(option),
        "priority": priority,
        "labels": labels(label),
    }
    submission |= _of_the_source(model, of_files, version, is_file=is_file(model))

    submission |= {
        "goal": goal,
        "batch": batch,
        "wait_for_workers": wait_for_workers,
        "precisions": split(precision),
    }

    def foretold(name: str | None) -> DryRun:
        with transfer.bar(hidden=as_json) as progress:
            return farm.dry_run_bench(model, [gpu], progress=progress, **_named(submission, name))

    def submitted(name: str | None) -> Build:
        with transfer.bar(hidden=as_json) as progress:
            return farm.submit_bench(
                model,
                [gpu],
                progress=progress,
                idempotency_key=idempotency_key,
                **_named(submission, name),
            )

    if dry_run:
        forecast.show_dry_run(naming.named(foretold, name, as_json=as_json), as_json=as_json)
        return
    made = naming.named(submitted, name, as_json=as_json)
    try:
        _wait(made, url, quiet=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(watch.stopped(made, url)) from None
    raise typer.Exit(_show(_table(farm, made, gpu), made.id, as_json=as_json, wide=wide, url=url))


def _named(submission: dict[str, Any], name: str | None) -> dict[str, Any]:
    return submission if name is None else submission | {"name": name}


def _of_the_source(
    model: str, given: dict[str, Any], version: int | None, *, is_file: bool
) -> dict[str, Any]:
    """What is said about a file, or which version of a model is meant.

    Raises:
        InvalidRequest: one of them was said of the other.
    """
    if is_file:
        if version is not None:
            raise InvalidRequest(
                f"{model} is a file, and its version is the farm's to give",
                hint="omit --version, or pass the model's name",
            )
        return given
    said = sorted(name for name, value in given.items() if value is not None)
    if said:
        raise InvalidRequest(
            f"there is no file {model}, and a model that the farm has keeps its "
            f"{', '.join(said).replace('_', ' ')}",
            hint="check the file's path, or omit these options",
        )
    return {"version": version}


def _wait(build: Build, url: str | None, *, quiet: bool) -> None:
    if quiet:
        for _ in build.events():
            pass
        return
    view = build.view
    naming.explain(build)
    show.line(
        f"build {view.id} of {view.model} v{view.version}: {counted(len(view.engines), 'engine')}"
    )
    show.line(f"on the page: {page(view.id, url)}")
    show.left_out(view.left_out)
    for warning in view.warnings:
        show.note(f"warning: {warning}")
    for missing in dict.fromkeys(job.waits_for for job in view.jobs if job.waits_for):
        show.line(f"waits for {missing}")
    watch.follow(build)
    show.line()


def _table(farm: Farm, build: Build, gpu: str) -> Bench:
    view = build.refresh().view
    return farm.bench_table(view.model, gpu, version=view.version)


def _show(found: Bench, build_id: str | None, *, as_json: bool, wide: bool, url: str | None) -> int:
    """Print the table; return the exit code."""
    if as_json:
        show.document({"build": build_id, **found.model_dump(mode="json")})
        return _code(found)
    show.line(f"{found.model} v{found.version} for {found.gpu}, ranked by {_goal(found)}")
    if wide:
        rows = [_row(found, row) for row in found.rows]
        show.table(_HEADERS, rows, keep=(*_KEEP, "engine"), empty="no engines")
    else:
        _show_narrow(found)
    if build_id is None:
        show.left_out(found.left_out)
    show.line()
    show.line(f"{'best: ' if found.winner else ''}{found.why}")
    if found.winner:
        show.line(f"  {again(_pull(found), url)}")
    return _code(found)


def _show_narrow(found: Bench) -> None:
    """The table without what is in brackets, and the notes below it."""
    rows = [
        [cell.partition(" (")[0] if isinstance(cell, str) else cell for cell in _row(found, row)]
        for row in found.rows
    ]
    headers = _HEADERS[:-1]
    cells = [row[: len(headers)] for row in rows]
    show.table(headers, cells, keep=_KEEP, empty="no engines", wide=False)
    for row in found.rows:
        if _note(row):
            show.line(f"{row.target} {show.precision(row.precision, row.prune)}: {_note(row)}")


def _pull(found: Bench) -> str:
    """The command that pulls the winner."""
    command = f"farm pull {found.model} --gpu {found.gpu} --version {found.version}"
    if not found.goal.followed:
        [won] = [row for row in found.rows if row.engine == found.winner]
        command += f" --runtime {won.runtime} --precision {won.precision}"
    return command


def _code(found: Bench) -> int:
    if found.winner:
        return exits.OK
    return exits.DOUBTFUL if any(row.engine for row in found.rows) else exits.FAILED


def _goal(found: Bench) -> str:
    from farm.specs.goals import Goal

    followed = "" if found.goal.followed else " (pulls follow another goal)"
    return f"{Goal(aim=found.goal.aim, batch=found.goal.batch)}{followed}"


def _row(found: Bench, row: BenchRow) -> tuple[str | Text, ...]:
    won = row.engine is not None and row.engine == found.winner
    return (
        "*" if won else str(row.place or ""),
        row.target,
        show.precision(row.precision, row.prune),
        show.state(str(row.state)),
        _latency(row),
        show.NONE if row.accuracy is None else show.worth(row.accuracy),
        _rate(row),
        show.NONE if row.bytes is None else show.size(row.bytes),
        show.NONE if row.speed_up_over_best is None else f"{row.speed_up_over_best:.2f}×",
        row.engine or show.NONE,
        _note(row),
    )


def _latency(row: BenchRow) -> str:
    if row.latency_ms is None:
        return show.NONE
    graph = ", CUDA graph" if row.cuda_graph else ""
    return f"{show.milliseconds(row.latency_ms)} (batch {row.batch}{graph})"


def _rate(row: BenchRow) -> str:
    if row.samples_per_s is None:
        return show.NONE
    return f"{row.samples_per_s:.0f} (batch {row.samples_batch})"


def _note(row: BenchRow) -> str:
    if row.error is not None:
        return row.error.detail.partition("\n")[0]
    if row.doubts:
        return "; ".join(row.doubts)
    return row.passed_over or ""
