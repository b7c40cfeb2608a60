"""The measure stage: accuracy against the source, and speed beside PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import AccuracyDropped, InvalidData
from farm.stages import BuildParams, CalibrateParams, CastParams, MeasureParams
from tests.graphs import matmul, small_graph
from tests.stage_bench import CPU, Bench, Digits, measured, save_npz
from workers.clocks.host import Timings, percentile
from workers.measure import cpu


def test_accuracy_is_that_of_the_typed_onnx_where_no_engine_runs(
    bench: Bench, digits: Digits
) -> None:
    facts = bench.run(
        measured("int8"),
        source=digits.source,
        typed=digits.int8_fp16,
        evaluation=digits.evaluation,
    ).facts
    accuracy = facts["accuracy"]
    assert accuracy["measured_on"] == "typed-onnx"
    assert accuracy["data"] == "evaluation"
    assert accuracy["samples"] == 450
    assert accuracy["top1_agreement"] > 0.97
    assert accuracy["task"]["metric"] == "top1"
    assert accuracy["task"]["source"] > 0.9
    assert abs(accuracy["task"]["drop"]) < 0.02
    assert facts["metrics"] is None
    assert facts["metrics_reason"]


def cpu_engine(bench: Bench, typed: Path, precision: str = "fp32") -> Path:
    params = BuildParams(target=CPU, compute_capability="cpu", precision=precision)
    return bench.run(params, typed=typed).outputs["engine"]


def test_a_cpu_engine_is_timed_beside_pytorch(bench: Bench, digits: Digits) -> None:
    result = bench.run(
        measured("fp32", target=CPU),
        source=digits.source,
        typed=digits.onnx,
        engine=cpu_engine(bench, digits.onnx),
        evaluation=digits.evaluation,
    )
    assert result.facts["accuracy"]["measured_on"] == "engine"
    assert result.facts["accuracy"]["top1_agreement"] == 1.0
    metrics = result.facts["metrics"]
    latency = metrics["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
    assert [entry["batch"] for entry in metrics["throughput"]] == [1, 8, 64]
    assert metrics["eager"]["latency_ms"]["p50"] > 0
    assert (metrics["speed_up"] is None) == (metrics["speed_up_reason"] is not None)
    assert metrics["settings"]["threads"] >= 1
    assert json.loads(result.outputs["report"].read_text()) == result.facts


def test_the_speed_up_is_the_ratio_of_medians_on_a_quiet_machine() -> None:
    latencies = {"eager": [0.004, 0.002, 0.003], "engine": [0.001, 0.001, 0.009]}
    assert cpu.speed_up(Timings(latencies=latencies, others_share=0.1)) == (3.0, None)


def test_there_is_no_speed_up_from_a_busy_machine() -> None:
    latencies = {"eager": [0.2], "engine": [0.001]}
    ratio, reason = cpu.speed_up(Timings(latencies=latencies, others_share=0.5))
    assert ratio is None
    assert "50%" in reason


@pytest.mark.parametrize(("percent", "expected"), [(50, 500), (90, 901), (95, 950), (99, 990)])
def test_percentiles_are_those_of_trtexec(percent: int, expected: int) -> None:
    assert percentile([float(value) for value in range(1000, 0, -1)], percent) == expected


def test_an_onnx_source_has_no_eager_pytorch(bench: Bench, digits: Digits) -> None:
    params = MeasureParams(precision="fp32", format="onnx", target=CPU)
    engine = cpu_engine(bench, digits.onnx)
    facts = bench.run(params, source=digits.onnx, typed=digits.onnx, engine=engine).facts
    assert "PyTorch can run" in facts["metrics"]["eager"]["reason"]
    assert "latency_ms" not in facts["metrics"]["eager"]
    assert facts["metrics"]["speed_up"] is None


def test_without_evaluation_data_calibration_data_serve(bench: Bench, digits: Digits) -> None:
    inputs = {"source": digits.source, "typed": digits.int8_fp16}
    accuracy = bench.run(measured("int8"), **inputs, calibration=digits.calibration).facts[
        "accuracy"
    ]
    assert (accuracy["data"], accuracy["samples"], accuracy["task"]) == ("calibration", 64, None)


def test_without_any_data_seeded_random_data_serve(bench: Bench, digits: Digits) -> None:
    inputs = {"source": digits.source, "typed": digits.fp16.outputs["typed"]}
    first, second = (bench.run(measured("fp16"), **inputs).facts["accuracy"] for _ in range(2))
    assert first == second
    assert first["data"] == "random"
    assert first["cosine_min"] > 0.99


@pytest.mark.heavy
def test_bf16_is_measured_although_the_cpu_has_none(bench: Bench, digits: Digits) -> None:
    typed = bench.run(CastParams(precision="bf16"), onnx=digits.onnx).outputs["typed"]
    inputs = {"source": digits.source, "typed": typed, "evaluation": digits.evaluation}
    accuracy = bench.run(measured("bf16"), **inputs).facts["accuracy"]
    assert accuracy["top1_agreement"] > 0.98
    assert accuracy["max_abs_error"] > 1e-3, "nothing was rounded to bf16"


def test_an_fp16_overflow_is_seen_although_the_cpu_computes_in_fp32(
    bench: Bench, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "up"], ["large"]),
        helper.make_node("Mul", ["large", "down"], ["small"]),
        helper.make_node("Cast", ["small"], ["y"], to=TensorProto.FLOAT),
    ]
    half = {"up": np.array(6e4, np.float16), "down": np.array(1e-4, np.float16)}
    typed = small_graph(tmp_path / "typed.onnx", *nodes, weights=half)
    source = small_graph(tmp_path / "source.onnx", helper.make_node("Relu", ["x"], ["y"]))
    data = save_npz(tmp_path / "x.npz", x=np.full((8, 4), 3, np.float32))
    params = MeasureParams(precision="fp16", format="onnx")
    error = bench.fails(AccuracyDropped, params, source=source, typed=typed, evaluation=data)
    assert "infinite" in error.detail


def test_a_drop_beyond_the_limit_fails_with_the_figures(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    model = onnx.load(str(digits.onnx))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.shape == (10, 64):  # one class loses its weights
            array = array.copy()
            array[3] = -1
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    typed = tmp_path / "worse.onnx"
    onnx.save(model, str(typed))
    inputs = {"source": digits.source, "typed": typed, "evaluation": digits.evaluation}
    params = measured("fp32", metric="top1", max_drop=0.01)
    error = bench.fails(AccuracyDropped, params, **inputs)
    assert "0.01" in error.detail
    assert bench.run(measured("fp32", metric="top1", max_drop=0.5), **inputs)


def test_a_drop_cannot_be_judged_without_labels(bench: Bench, digits: Digits) -> None:
    params = measured("fp32", metric="top1", max_drop=0.01)
    inputs = {"source": digits.source, "typed": digits.onnx}
    bench.fails(InvalidData, params, **inputs, evaluation=digits.calibration)
    bench.fails(InvalidData, params, **inputs)


def test_an_engine_that_has_nothing_to_do_with_its_source_fails(
    bench: Bench, tmp_path: Path
) -> None:
    source = small_graph(tmp_path / "source.onnx", helper.make_node("Neg", ["x"], ["y"]))
    typed = small_graph(tmp_path / "typed.onnx", helper.make_node("Identity", ["x"], ["y"]))
    params = MeasureParams(precision="fp32", format="onnx")
    assert "cosine" in bench.fails(AccuracyDropped, params, source=source, typed=typed).detail


@pytest.mark.parametrize("label", [np.zeros(449, np.int64), np.zeros((450, 10), np.float32)])
def test_labels_that_do_not_fit_are_refused(
    label: np.ndarray, bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    image = np.load(digits.evaluation)["image"]
    data = save_npz(tmp_path / "e.npz", image=image, label=label)
    inputs = {"source": digits.source, "typed": digits.onnx, "evaluation": data}
    assert "label" in bench.fails(InvalidData, measured("fp32"), **inputs).detail


def test_a_static_batch_is_measured_in_whole_batches(bench: Bench, tmp_path: Path) -> None:
    source = matmul(tmp_path / "static.onnx", shape=(3, 4))
    data = save_npz(tmp_path / "x.npz", x=np.ones((10, 4), np.float32))
    params = MeasureParams(precision="fp32", format="onnx")
    facts = bench.run(params, source=source, typed=source, evaluation=data).facts
    assert facts["accuracy"]["samples"] == 9


def test_a_task_is_judged_by_the_metric_that_was_asked_for(bench: Bench, digits: Digits) -> None:
    facts = bench.run(
        measured("int8", metric="f1"),
        source=digits.source,
        typed=digits.int8_fp16,
        evaluation=digits.evaluation,
    ).facts
    task = facts["accuracy"]["task"]
    assert task["metric"] == "f1"
    assert task["source"] > 0.9
    assert abs(task["drop"]) < 0.02
    low, high = task["drop_interval"]
    assert low <= task["drop"] <= high
    assert task["source_interval"][0] < task["source"] < 1


def test_a_metric_that_no_output_fits_is_refused_by_name(bench: Bench, digits: Digits) -> None:
    with pytest.raises(InvalidData, match="no output fits cer"):
        bench.run(
            measured("int8", metric="cer"),
            source=digits.source,
            typed=digits.int8_fp16,
            evaluation=digits.evaluation,
        )


def test_a_label_beyond_an_outputs_classes_is_refused(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    image = np.load(digits.evaluation)["image"][:40]
    data = save_npz(tmp_path / "e.npz", image=image, label=np.arange(1, 41) % 10 + 1)
    inputs = {"source": digits.source, "typed": digits.onnx, "evaluation": data}
    assert (
        "classes up to 10, but no output"
        in bench.fails(InvalidData, measured("fp32"), **inputs).detail
    )
    told = bench.fails(InvalidData, measured("fp32", metric="f1"), **inputs).detail
    assert "'label' has the class 10, and the output scores 10 classes" in told


def test_channels_that_never_fire_are_warned_of(bench: Bench, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    bias = np.where(np.arange(32) < 8, -100, 0).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["fires"]),
        helper.make_node("MatMul", ["fires", "w"], ["y"]),
    ]
    model = small_graph(
        tmp_path / "m.onnx", *nodes, shape=("n", 32), weights={"w": weights, "b": bias}
    )
    x = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
    data = save_npz(tmp_path / "x.npz", x=x)
    typed = bench.run(CalibrateParams(), onnx=model, calibration=data).outputs["typed"]
    params = MeasureParams(precision="int8", format="onnx")
    facts = bench.run(params, source=model, typed=typed, evaluation=data).facts
    [one] = facts["accuracy"]["data_warnings"]
    assert "8 of 32 channels after Relu never fire on 64 samples, most in 'fires' (8 of 32)" in one
    few = save_npz(tmp_path / "few.npz", x=x[:31])
    facts = bench.run(params, source=model, typed=typed, evaluation=few).facts
    assert not any("never fire" in one for one in facts["accuracy"]["data_warnings"])
