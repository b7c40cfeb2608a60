"""The pages of docs/ that say what came of the zoo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from farm.specs.precision import Precision

Result = dict[str, Any]

#: Shares and cosines above these are whole for a reader.
_WHOLE_SHARE, _WHOLE_COSINE = 0.995, 0.999

_MATRIX = """<!-- Made by `make support-matrix`; a change here would be lost. -->

# Support matrix

Models × GPUs × precisions: TensorRT-RTX ahead of time for each architecture, ONNX Runtime for `cpu`,
on a machine of 2 cores without a GPU. The models are the light ones inside the `onnx` package and
small configurations of `transformers`, all with random weights and samples.

A cell says the engine's size, the share of the multiplications that are in that type where it isn't all,
and the cosine similarity with the source where it is below 0.999. A number in brackets is a reason, below."""

_ARCHITECTURES = """<!-- Made by `make gpu-architectures`; a change here would be lost. -->

# Two models for every architecture

BERT-base (`transformers.BertModel`, dynamic batch 1–8 and sequence 16–128) and ResNet-50 (224 × 224, dynamic
batch 1–16), with random weights, in every precision that each architecture has: TensorRT-RTX ahead of time,
ONNX Runtime for `cpu`, on a machine of 2 cores without a GPU. int8 and fp8 are calibrated with random
samples by the method `max`.

Each job ran in a process of its own, one after the other. Its time is that of the CPU, of all cores together:
what the clock says depends on what else a machine does, and is less where both cores work at once. Its peak
memory counts what it shares with the process that jobs are forked from, about {shared} of imported libraries.
Accuracy is that of the typed ONNX graph for GPUs, and of the engine for `cpu`. The jobs of the first table
serve all engines of a model; int8 is measured for `sm_75`, which has no bf16, on its own."""


def support_matrix(results: Sequence[Result]) -> str:
    gpus = list(dict.fromkeys(row["gpu"] for result in results for row in result["rows"]))
    reasons: dict[str, int] = {}
    lines = [_MATRIX]
    for precision in Precision:
        lines += ["", f"## {precision}", "", *_head("model", *gpus)]
        for result in results:
            rows = [row for row in result["rows"] if row["precision"] == precision]
            lines.append(_line(result["model"], *(_cell(row, reasons) for row in rows)))
    lines += ["", "## Why not", "", *_reasons(reasons)]
    lines += ["", "## Time and memory", ""]
    lines += _head("model", "engines", "CPU time of all jobs", "largest peak memory of a job")
    for result in results:
        built = sum(not row["error"] for row in result["rows"])
        peak = max(job["peak_bytes"] for job in result["jobs"])
        spent = sum(job["cpu_s"] for job in result["jobs"])
        lines.append(_line(result["model"], built, f"{spent:.0f} s", _gb(peak)))
    return "\n".join(lines) + "\n"


def gpu_architectures(results: Sequence[Result]) -> str:
    least = min(job["peak_bytes"] for result in results for job in result["jobs"])
    lines = [_ARCHITECTURES.format(shared=_gb(least))]
    for result in results:
        lines += [
            "",
            f"## {result['model']}",
            "",
            *_head("job", "precision", "CPU time", "peak memory"),
        ]
        lines += [_shared(job) for job in result["jobs"] if job["kind"] != "build"]
        columns = ("build, CPU time", "peak memory", "engine", "computes in", "cosine", "top-1")
        lines += ["", *_head("GPU", "precision", *columns)]
        lines += [_engine(row) for row in result["rows"]]
    return "\n".join(lines) + "\n"


def _shared(job: dict[str, Any]) -> str:
    on_cpu = f"{job['kind']}, engine for cpu" if job["title"].endswith("@cpu") else job["kind"]
    return _line(on_cpu, job["precision"] or "–", _time(job), _gb(job["peak_bytes"]))


def _engine(row: dict[str, Any]) -> str:
    named = (row["gpu"], row["precision"])
    if row["error"]:
        return _line(*named, *"–––", _told(row), *"––")
    accuracy, top1 = row["accuracy"], row["accuracy"]["top1_agreement"]
    return _line(
        *named,
        _time(row),
        _gb(row["peak_bytes"]),
        f"{row['bytes'] / 1e6:.1f} MB",
        ", ".join(
            name if share is None else f"{name} {share:.1%}" for name, share in row["types"].items()
        ),
        f"{accuracy['cosine_mean']:.4f}",
        "–" if top1 is None else f"{top1:.1%}",
    )


def _time(job: dict[str, Any]) -> str:
    return f"{job['cpu_s']:.1f} s"


def _cell(row: dict[str, Any], reasons: dict[str, int]) -> str:
    if row["error"]:
        return _reason(row, reasons)
    said = [f"{row['bytes'] / 1e6:.1f} MB"]
    share = row["types"].get(Precision(row["precision"]).computes_in)
    cosine = row["accuracy"]["cosine_mean"]
    if share is not None and share < _WHOLE_SHARE:
        said.append(f"{share:.0%}")
    if cosine < _WHOLE_COSINE:
        said.append(f"cos {cosine:.3f}")
    return ", ".join(said)


def _reason(row: dict[str, Any], reasons: dict[str, int]) -> str:
    return f"[{reasons.setdefault(_told(row), len(reasons) + 1)}]"


def _told(row: dict[str, Any]) -> str:
    """Why not, and what to do. What is refused at once says that of the pair, which stands beside."""
    code, detail, hint = row["error"]
    pair = f"{row['precision']} for {row['gpu']}: "
    return detail.removeprefix(pair) if code == "target-unsupported" else f"{detail}. Hint: {hint}"


def _reasons(reasons: dict[str, int]) -> Iterator[str]:
    for text, number in reasons.items():
        yield f"{number}. {text}"


def _head(*names: str) -> list[str]:
    return [_line(*names), _line(*["---"] * len(names))]


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
