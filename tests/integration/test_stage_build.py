"""The build stage: engines for exactly the GPU that was asked for, or a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from farm.errors import EngineBuildFailed
from farm.formats.rtx_header import parse_header
from farm.specs.runtime import Target
from farm.stages import BuildParams, CalibrateParams, CastParams
from tests.graphs import small_graph
from tests.stage_bench import CPU, IMAGE, Bench, Digits, batch_profile, measured, rtx


@pytest.mark.parametrize("gpu", ["sm_75", "sm_86", "sm_89", "sm_120"])
def test_rtx_engines_are_for_exactly_the_asked_gpu(gpu: str, bench: Bench, digits: Digits) -> None:
    params = BuildParams(
        target=Target(runtime="tensorrt-rtx", gpu=gpu), compute_capability=gpu, precision="int8"
    )
    result = bench.run(params, typed=digits.int8_fp16)
    data = result.outputs["engine"].read_bytes()
    header = parse_header(data)
    assert header.compute_capabilities == (gpu,) == tuple(result.facts["compute_capabilities"])
    assert header.version == result.facts["runtime_version"]
    assert header.bytes == len(data) == result.facts["engine_bytes"]
    assert result.facts["layers"] > 0


def test_rtx_builds_every_precision(bench: Bench, digits: Digits) -> None:
    bf16 = bench.run(CastParams(precision="bf16"), onnx=digits.onnx).outputs["typed"]
    for typed in (digits.onnx, digits.fp16.outputs["typed"], bf16):
        assert bench.run(rtx("sm_89"), typed=typed).facts["build_s"] > 0


@pytest.mark.parametrize("method", ["entropy", "max"])
def test_fp8_is_calibrated_built_and_as_accurate_as_the_source(
    bench: Bench, digits: Digits, method: str
) -> None:
    params = CalibrateParams(precision="fp8", method=method)
    made = bench.run(params, onnx=digits.onnx, calibration=digits.calibration)
    typed = made.outputs["typed_fp16"]
    zero_points = {
        tensor.data_type
        for tensor in onnx.load(str(typed)).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN
    }
    assert zero_points, "nothing is fp8"
    assert bench.run(rtx("sm_89", "fp8"), typed=typed).facts["layers"] > 0
    inputs = {"source": digits.source, "typed": typed, "evaluation": digits.evaluation}
    assert bench.run(measured("fp8"), **inputs).facts["accuracy"]["top1_agreement"] > 0.97


def test_an_engine_can_have_several_profiles(bench: Bench, digits: Digits) -> None:
    profiles = (batch_profile(1, 1, 1), batch_profile(2, 8, 16))
    facts = bench.run(rtx("sm_89", profiles=profiles), typed=digits.onnx).facts
    assert [profile["image"]["opt"][0] for profile in facts["profiles"]] == [1, 8]


def test_progress_names_the_phase_of_a_build(bench: Bench, digits: Digits) -> None:
    bench.run(rtx("sm_89"), typed=digits.onnx)
    assert any(phase.startswith("build: ") for phase, _ in bench.phases)


def test_turing_refuses_fp32_matrix_products_and_bf16(bench: Bench, digits: Digits) -> None:
    error = bench.fails(EngineBuildFailed, rtx("sm_75"), typed=digits.onnx)
    assert "fp32" in error.detail
    assert "choose fp16" in (error.hint or "")
    bf16 = bench.run(CastParams(precision="bf16"), onnx=digits.onnx).outputs["typed"]
    assert "bf16" in bench.fails(EngineBuildFailed, rtx("sm_75", "bf16"), typed=bf16).detail


def test_turing_is_not_answered_with_the_precision_that_was_asked_for(
    bench: Bench, tmp_path: Path
) -> None:
    up = {"w": np.full((4, 4), 1e6, np.float32), "v": np.full((4, 4), 1e-3, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["small"], name="fits"),
        helper.make_node("MatMul", ["small", "w"], ["y"], name="leaves"),
    ]
    source = small_graph(tmp_path / "wide.onnx", *nodes, weights=up)
    typed = bench.run(CastParams(precision="fp16"), onnx=source).outputs["typed"]
    error = bench.fails(EngineBuildFailed, rtx("sm_75", "fp16"), typed=typed)
    assert "'leaves'" in error.detail
    assert "sm_80" in (error.hint or "")


def test_a_gpu_that_rtx_cannot_build_for_is_answered_with_those_it_can(
    bench: Bench, digits: Digits
) -> None:
    error = bench.fails(EngineBuildFailed, rtx("sm_90"), typed=digits.onnx)
    assert "sm_89" in (error.hint or "")


def test_the_builders_reason_reaches_the_user(bench: Bench, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"], name="where"),
        helper.make_node("Cast", ["found"], ["y"], to=TensorProto.FLOAT),
    ]
    error = bench.fails(
        EngineBuildFailed, rtx("sm_89"), typed=small_graph(tmp_path / "nonzero.onnx", *nodes)
    )
    assert "NonZero" in error.detail


def test_a_runtime_that_is_not_installed_is_named(bench: Bench, digits: Digits) -> None:
    params = BuildParams(
        target=Target(runtime="tensorrt", gpu="sm_90"),
        compute_capability="sm_90",
        precision="fp32",
    )
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        error = bench.fails(EngineBuildFailed, params, typed=digits.onnx)
        assert "isn't installed" in error.detail
    else:
        pytest.skip("classic TensorRT is installed here")


@pytest.mark.parametrize(
    ("precision", "share"),
    [("fp32", 1e-5), ("int8", 0.05)],  # int8 engines round what their operators give, too
)
def test_cpu_engines_give_the_outputs_of_their_typed_graph(
    precision: str, share: float, bench: Bench, digits: Digits
) -> None:
    typed = digits.onnx if precision == "fp32" else digits.int8
    params = BuildParams(target=CPU, compute_capability="cpu", precision=precision)
    inputs = digits.for_cpu | {"typed": typed}
    engine = bench.run(params, **inputs).outputs["engine"]
    expected, actual = (
        onnxruntime.InferenceSession(str(path)).run(None, {"image": IMAGE})[0]
        for path in (typed, engine)
    )
    assert np.abs(expected - actual).max() < share * np.abs(expected).max()


def test_bf16_for_the_cpu_says_what_to_choose(bench: Bench, digits: Digits) -> None:
    bf16 = bench.run(CastParams(precision="bf16"), onnx=digits.onnx).outputs["typed"]
    params = BuildParams(target=CPU, compute_capability="cpu", precision="bf16")
    assert "fp16" in (bench.fails(EngineBuildFailed, params, typed=bf16).hint or "")
