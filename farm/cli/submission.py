"""The options that describe a submission, for the commands that make one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farm.cli import complete
from farm.specs import tasks
from farm.specs.accuracy_goal import MOST_BUDGET_S
from farm.specs.preprocess import PRESETS

Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="The model's name; by default the file's, or if that is as general as model.onnx, its graph's, "
        "its config.json's or its folder's.",
    ),
]
CalibrationData = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Samples for int8 and fp8: .npz, .safetensors, or a tar of images; or for int8 the calibration "
        "cache of TensorRT 10 or earlier.",
    ),
]
ImagePreprocess = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="PRESET|FILE",
        help=f"How images become the model's input: {', '.join(PRESETS)}, or a JSON or YAML file with "
        "resize, crop, mean, std and others.",
        autocompletion=complete.preprocess,
    ),
]
CalibrationMethod = Annotated[
    str,
    typer.Option(
        "--calibration-method",
        metavar="METHOD",
        help="How activations' ranges are chosen: auto (for each tensor what errs least on samples held "
        "out), max, percentile, entropy or mse.",
    ),
]
CalibrationPercentile = Annotated[
    float | None,
    typer.Option(
        "--calibration-percentile",
        metavar="P",
        min=50,
        max=100,
        help="The percentage of values that isn't clipped, for percentile and auto; 99.99 by default.",
    ),
]
CalibrationBatchSize = Annotated[
    int,
    typer.Option(
        "--calibration-batch-size",
        metavar="N",
        min=1,
        max=4096,
        help="Samples per batch.",
    ),
]
CalibrationBudget = Annotated[
    int,
    typer.Option(
        "--calibration-budget",
        metavar="SECONDS",
        min=0,
        max=MOST_BUDGET_S,
        help="How long int8 and fp8 may be looked for that keep --max-drop; 0 tries plain calibration alone.",
    ),
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-float",
        metavar="PATTERN",
        help="Operators that stay in floats, repeatable: --keep-float '/head/*'. farm inspect names them.",
    ),
]
KeepQuantized = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-quantized",
        metavar="PATTERN",
        help="Operators that stay quantised whatever --max-drop asks, repeatable.",
    ),
]
EvaluationData = Annotated[
    str | None,
    typer.Option(
        "--evaluation",
        metavar="FILE",
        help="Evaluation samples, optionally with labels: .npz, .safetensors, or a tar of images.",
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="METRIC",
        help=f"The task's metric: {', '.join(tasks.Metric)}.",
        autocompletion=complete.metrics,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="DROP",
        min=0,
        help="Largest allowed drop of the metric, as a share; of mae and rmse in the labels' units.",
    ),
]
MaxLatencyRatio = Annotated[
    float | None,
    typer.Option(
        "--max-latency-ratio",
        metavar="RATIO",
        min=0,
        help="With --max-drop: the most time int8 may take over fp32, both in ONNX Runtime on a CPU.",
    ),
]
Task = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="KEY=VALUE",
        help=f"How outputs are read for the metric, repeatable: {', '.join(tasks.TaskOptions.model_fields)}.",
    ),
]
MaxOutputError = Annotated[
    list[str] | None,
    typer.Option(
        "--max-output-error",
        metavar="OUTPUT=RATIO",
        help="A tolerance of this output's own, repeatable: --max-output-error logits=0.05.",
    ),
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        "--min-agreement",
        metavar="SHARE",
        min=0,
        max=1,
        help="Mark engines doubtful whose classes, integers or items agree less with the source's.",
    ),
]
MaxError = Annotated[
    float | None,
    typer.Option(
        "--max-error",
        metavar="RATIO",
        min=0,
        help="Mark engines doubtful whose floats have a larger error: RMS error over standard deviation.",
    ),
]
Profiles = Annotated[
    list[str] | None,
    typer.Option(
        "--profile",
        metavar="INPUT=MIN:OPT:MAX",
        help="An input's shapes: image=1x1x8x8:8x1x8x8:64x1x8x8. Repeat for other inputs.",
    ),
]
Fixed = Annotated[
    list[str] | None,
    typer.Option(
        "--fix",
        metavar="NAME=VALUE",
        help="Fix an input to a constant value: sr=16000, size=[640,480]. Repeat for more.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="tf32=false on any GPU; for TensorRT builder_optimization_level=5, … Repeat for more.",
        autocompletion=complete.builder_options,
    ),
]
Prune = Annotated[
    str | None,
    typer.Option(
        "--prune",
        metavar="METHOD",
        help="Prune the model first: 2:4 for TensorRT's sparse kernels, or l1 with a fraction: l1:0.5.",
        autocompletion=complete.prunings,
    ),
]
Priority = Annotated[
    int, typer.Option("--priority", min=0, max=9, help="Priority; 9 is the most urgent.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="KEY=VALUE", help="Label the build and its version. Repeat for more."
    ),
]
VersionNote = Annotated[
    str | None, typer.Option("--note", metavar="TEXT", help="A note on the version.")
]
NewInputs = Annotated[
    bool,
    typer.Option(
        "--new-inputs",
        help="Accept a version with other inputs or outputs than the one before it.",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="Resubmitting with the same key returns the first build.",
    ),
]
SourceFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="onnx, pt2, torchscript, savedmodel, safetensors; by default detected.",
    ),
]
ArchitectureName = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="LIBRARY:NAME",
        help="Model class of .safetensors weights: transformers:BertModel.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The architecture's config.json."),
]
DryRunOnly = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Submit nothing: print the jobs, which of them are there, what the others would take, as "
        "like jobs took, and what they would wait for. Nothing is uploaded: the farm can't check a file "
        "that it doesn't have.",
    ),
]
