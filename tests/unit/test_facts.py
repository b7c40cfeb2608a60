"""A stage's process is a stranger's: what it says of its job is taken if a stage of the farm could say so."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from farm import stages
from farm.errors import ResultRefused, code_of
from farm.reports import extent
from farm.reports.kept import shown
from farm.stages import JobKind
from workers.runner.made import made_of
from workers.sandbox import messages

X = {"name": "x", "dtype": "float32", "shape": ["batch", 4]}
RANGE = {"min": [1, 4], "opt": [8, 4], "max": [64, 4]}
COMPUTE = {"macs": 8, "types": {"int8": {"layers": 1, "share": 1.0}}, "source": "graph", "found": 1}
LAYERS = {
    "source": "the graph",
    "compute": COMPUTE,
    "products": [],
    "layers": [{"name": "a", "type": "Relu", "inputs": [], "outputs": []}],
}
HONEST: dict[JobKind, dict[str, Any]] = {
    JobKind.PRUNE: {
        "weights": 10,
        "sparsity": 0.5,
        "layers": {"fc": {"weights": 10, "sparsity": 0.5}},
        "left_out": {"conv": "no axis of four"},
    },
    JobKind.EXPORT: {"inputs": [X], "outputs": [X], "opset": 21, "check": {"data": "random"}},
    JobKind.CAST: {"precision": "fp16", "share": 0.5, "kept_in_fp32": {"Softmax": 2}},
    JobKind.CALIBRATE: {"samples": 8, "method": "entropy", "remainder_nodes": {"fp16": 3}},
    JobKind.BUILD: {
        "runtime": "onnxruntime",
        "runtime_version": "1.27.1",
        "compute": COMPUTE,
        "inputs": [X],
        "outputs": [X],
        "profiles": [{"x": RANGE}],
        "options": {"tf32": True},
        "provider": {
            "options": {"prefer_nhwc": "1"},
            "fused_attention": 12,
            "tried": [{"options": {}, "fused_attention": False, "reason": "not faster"}],
        },
        "peak_memory_bytes": 1,
    },
    JobKind.MEASURE: {
        "accuracy": {
            "samples": 8,
            "data": "evaluation",
            "task": {"metric": "top1", "source": 0.9, "engine": 0.9, "drop": 0.0},
            "something_new": [1.0],
        },
        "doubts": ["it isn't exact"],
        "metrics": {
            "batch": 8,
            "latency_ms": {"p50": 1.5},
            "throughput": [{"batch": 1, "samples_per_s": None, "reason": "slow"}],
            "others_cpu_share": 0.1,
        },
        "metrics_reason": None,
    },
    JobKind.INFER: {"outputs": [X], "run_ms": 1.5},
}
ROLES = {
    JobKind.PRUNE: ["source"],
    JobKind.EXPORT: ["onnx"],
    JobKind.CAST: ["typed"],
    JobKind.CALIBRATE: ["typed", "histograms"],
    JobKind.BUILD: ["engine", "layers"],
    JobKind.MEASURE: ["report"],
    JobKind.INFER: ["outputs"],
}


TENSOR = {"tensor": "a", "largest": 2.0, "range": 1.0, "counts": [3, 1]}


def said(
    kind: JobKind,
    workdir: Path,
    found: Any,
    layers: bytes | None = None,
    histograms: bytes = b"{}",
) -> Any:
    """What a process has sent, as the worker has it."""
    outputs = {}
    for role in ROLES[kind]:
        (workdir / role).write_bytes(b"made")
        outputs[role] = str(workdir / role)
    if kind is JobKind.BUILD:
        (workdir / "layers").write_bytes(json.dumps(LAYERS).encode() if layers is None else layers)
    if kind is JobKind.CALIBRATE:
        (workdir / "histograms").write_bytes(histograms)
    message = json.dumps(["result", {"outputs": outputs, "facts": found}]).encode()
    return messages._parsed(message)[1]


def changed(kind: JobKind, path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(HONEST[kind])
    *above, last = path.split(".")
    inner: Any = found
    for name in above:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    inner[int(last) if isinstance(inner, list) else last] = value
    return found


def nested(depth: int) -> Any:
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize("kind", JobKind)
def test_what_a_stage_says_is_taken(kind: JobKind, tmp_path: Path) -> None:
    made = made_of(said(kind, tmp_path, HONEST[kind]), kind, tmp_path)
    assert made.facts == HONEST[kind]
    assert made.outputs.keys() == set(ROLES[kind])


#: Whatever may stand where something else is read.
LIES: list[Any] = ["x", [1], {"a": {"a": 1}}, 10**300, nested(3), True, -5, {"": [None]}]


@pytest.mark.parametrize("kind", JobKind)
def test_a_field_of_another_type_is_refused_wherever_it_stands(
    kind: JobKind, tmp_path: Path
) -> None:
    taken = []
    for name in stages.STAGES[kind].facts.model_fields:
        refused = 0
        for lie in LIES:
            with suppress(ResultRefused):
                made_of(said(kind, tmp_path, changed(kind, name, lie)), kind, tmp_path)
                continue
            refused += 1
        if refused < 5:  # some are right for a text, a list of texts, a number
            taken.append(name)
    assert not taken


@pytest.mark.parametrize(
    ("kind", "path", "lie"),
    [
        (JobKind.MEASURE, "metrics.latency_ms.p50", "a"),
        (JobKind.MEASURE, "metrics.latency_ms.p50", {"a": 1}),
        (JobKind.MEASURE, "metrics.latency_ms", [1]),
        (JobKind.MEASURE, "metrics.others_cpu_share", "a"),
        (JobKind.MEASURE, "metrics.throughput.0.batch", None),
        (JobKind.MEASURE, "metrics.settings", [1]),
        (JobKind.MEASURE, "metrics.something_new", nested(20)),
        (JobKind.MEASURE, "accuracy.samples", "x"),
        (JobKind.MEASURE, "accuracy.task", [1]),
        (JobKind.MEASURE, "accuracy.task.source", None),
        (JobKind.MEASURE, "accuracy.something_new", 10**400),
        (JobKind.MEASURE, "doubts", ["x"] * 2000),
        (JobKind.MEASURE, "metrics_reason", "x" * 5000),
        (JobKind.BUILD, "runtime_version", "x" * 41),
        (JobKind.BUILD, "runtime_version", None),
        (JobKind.BUILD, "inputs.0.shape", [1.5]),
        (JobKind.BUILD, "inputs.0.more", 1),
        (JobKind.BUILD, "profiles.0.x.min", [9, 9]),
        (JobKind.BUILD, "same", "an engine of others"),
        (JobKind.BUILD, "timing_cache", {"hit": "yes"}),
        (JobKind.EXPORT, "check.reason", "y" * 3_000_000),
        (JobKind.EXPORT, "check.batches", [[]] * 90_000),
        (JobKind.EXPORT, "inputs", [X] * 30_000),
        (JobKind.EXPORT, "unknown", 1),
        (JobKind.PRUNE, "layers", {str(n): "x" for n in range(30_000)}),
        (JobKind.CALIBRATE, "remainder_nodes", {"fp16": -1}),
        (JobKind.INFER, "outputs.0.shape", "x"),
        (JobKind.INFER, "run_ms", "soon"),
    ],
)
def test_a_lie_of_a_stage_is_refused_before_anything_keeps_it(
    kind: JobKind, path: str, lie: Any, tmp_path: Path
) -> None:
    with pytest.raises(ResultRefused) as caught:
        made_of(said(kind, tmp_path, changed(kind, path, lie)), kind, tmp_path)
    assert caught.value.code == code_of(ResultRefused) == "result-refused"
    assert caught.value.hint
    assert len(caught.value.detail) < 1000


@pytest.mark.parametrize("missing", ["runtime_version", "inputs", "outputs", "profiles"])
def test_what_the_registry_shows_of_an_engine_may_not_be_missing(
    missing: str, tmp_path: Path
) -> None:
    found = {name: value for name, value in HONEST[JobKind.BUILD].items() if name != missing}
    with pytest.raises(ResultRefused, match=missing):
        made_of(said(JobKind.BUILD, tmp_path, found), JobKind.BUILD, tmp_path)


@pytest.mark.parametrize(
    "layers",
    [
        b"\0garbage",
        b"NaN",
        b"[" * 200_000,
        b'{"layers":5}',
        b"[" + b"1," * 1_000_000 + b"1]",
        json.dumps(LAYERS | {"layers": [{}] * 300_000}).encode(),
        json.dumps(LAYERS | {"kinds": {"Relu": "many"}}).encode(),
        b" " * (33 * 2**20),
    ],
    ids=["bytes", "NaN", "deep", "a number", "a list", "many wrong layers", "kinds", "33 MiB"],
)
def test_a_layer_report_that_is_none_is_refused(layers: bytes, tmp_path: Path) -> None:
    found = said(JobKind.BUILD, tmp_path, HONEST[JobKind.BUILD], layers)
    with pytest.raises(ResultRefused, match="layer report"):
        made_of(found, JobKind.BUILD, tmp_path)


@pytest.mark.parametrize(
    "histograms",
    [
        b"\0garbage",
        b'{"tensors": 5}',
        json.dumps({"tensors": [TENSOR] * 101}).encode(),
        json.dumps({"tensors": [TENSOR | {"tensor": "n" * 201}]}).encode(),
        json.dumps({"tensors": [TENSOR | {"counts": [1] * 129}]}).encode(),
        json.dumps({"tensors": [TENSOR | {"counts": [-1]}]}).encode(),
        json.dumps({"tensors": [TENSOR | {"range": 0.0}]}).encode(),
        json.dumps({"tensors": [TENSOR | {"more": 1}]}).encode(),
        b'{"tensors": [{"tensor": "a", "largest": 1e999}]}',
        b" " * (2**20 + 1),
    ],
    ids="bytes number many name bins negative zero more infinite large".split(),
)
def test_histograms_that_no_calibration_sends_are_refused(
    histograms: bytes, tmp_path: Path
) -> None:
    kind = JobKind.CALIBRATE
    fine = json.dumps({"tensors": [TENSOR]}).encode()
    made_of(said(kind, tmp_path, HONEST[kind], histograms=fine), kind, tmp_path)
    found = said(kind, tmp_path, HONEST[kind], histograms=histograms)
    with pytest.raises(ResultRefused, match="histograms"):
        made_of(found, kind, tmp_path)


def test_a_message_of_more_values_than_any_result_has_is_none() -> None:
    message = b'["result",[' + b"[]," * 1_000_000 + b"[]]]"
    with pytest.raises(messages.Malformed):
        list(messages.Inbox().take(len(message).to_bytes(4, "big") + message))


def test_a_message_larger_than_any_result_is_none() -> None:
    size = messages.MAX_BYTES + 1
    with pytest.raises(messages.Malformed):
        list(messages.Inbox().take(size.to_bytes(4, "big")))


@pytest.mark.parametrize(
    "value",
    [nested(17), 2**64, float("nan"), float("inf"), "\ud800", {"\ud800": 1}, "x" * 10_001, b"x"],
)
def test_what_could_not_be_answered_doesnt_fit(value: Any) -> None:
    assert not extent.fits({"a": value})
    assert shown({"a": value}) == {}


def test_facts_of_an_earlier_farm_are_shown_as_they_are() -> None:
    kept = {"a": [1, 2.5, None, True, "ü"], "b": {"c": {}}}
    assert shown(kept) == kept
    assert shown(None) == shown([1]) == shown("x") == {}
