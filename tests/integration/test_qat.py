"""Models that were quantised before they came: int8 engines under that name, without calibration data."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.builds.submit import Terms, submit_build
from farm.errors import (
    CalibrationFailed,
    CalibrationMissing,
    CastFailed,
    EngineBuildFailed,
    PrecisionMissed,
    TargetUnsupported,
)
from farm.formats import onnx_files, protobuf, sources
from farm.formats.sources import Look
from farm.schemas.submission import BuildRequest
from farm.specs.runtime import Runtime, Target
from farm.specs.shapes import ShapeRange
from farm.specs.source import SourceFormat
from farm.stages import BuildParams, CalibrateParams, CastParams, JobKind
from tests.graphs import matmul
from workers.backends.ort.cpu import OrtModel
from workers.graphs import shapes
from workers.graphs.compute import compute_of
from workers.quantize import qat
from workers.stages.base import StageRequest, run_request

F = TensorProto.FLOAT


def trained(*, symmetric=True, integer_bias=False, opset=20):
    """Two convolutions and a head, quantised in training as TensorRT or as x86 wants it."""
    rng = np.random.default_rng(5)
    nodes, tensors = [], {}

    def add(op_type, inputs, output, **attributes):
        nodes.append(helper.make_node(op_type, inputs, [output], name=f"/{output}", **attributes))
        return output

    def activation(x, name, largest, zero):
        kind = np.int8 if symmetric else np.uint8
        tensors[f"{name}_s"] = np.float32(largest / (127 if symmetric else 255))
        tensors[f"{name}_z"] = kind(0 if symmetric else zero)
        ends = [f"{name}_s", f"{name}_z"]
        add("QuantizeLinear", [x, *ends], f"{name}_q")
        return add("DequantizeLinear", [f"{name}_q", *ends], f"{name}_d")

    def weight(name, *shape):
        full = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        scale = (np.abs(full).max(axis=tuple(range(1, len(shape)))) / 127).astype(np.float32)
        stored = np.rint(full / scale.reshape(-1, *[1] * (len(shape) - 1)))
        tensors.update({f"{name}_i": stored.astype(np.int8), f"{name}_s": scale})
        tensors[f"{name}_z"] = np.zeros(shape[0], np.int8)
        ends = [f"{name}_i", f"{name}_s", f"{name}_z"]
        return add("DequantizeLinear", ends, f"{name}_d", axis=0)

    def bias(name, size, x, w):
        values = (0.1 * rng.standard_normal(size)).astype(np.float32)
        if not integer_bias:
            tensors[name] = values
            return name
        tensors[f"{name}_s"] = tensors[f"{x}_s"] * tensors[f"{w}_s"]
        tensors[f"{name}_i"] = np.rint(values / tensors[f"{name}_s"]).astype(np.int32)
        return add("DequantizeLinear", [f"{name}_i", f"{name}_s"], f"{name}_d", axis=0)

    x = activation("x", "x0", 6 if not symmetric else 3, 113)
    inputs = [x, weight("w1", 8, 3, 3, 3), bias("b1", 8, "x0", "w1")]
    add("Relu", [add("Conv", inputs, "c1", pads=[1, 1, 1, 1])], "r1")
    x = activation("r1", "a1", 4, 0)
    add(
        "Relu",
        [add("Conv", [x, weight("w2", 16, 8, 3, 3), bias("b2", 16, "a1", "w2")], "c2")],
        "r2",
    )
    add("Flatten", [add("GlobalAveragePool", [activation("r2", "a2", 3, 0)], "p")], "f")
    x = activation("f", "a3", 2, 3)
    add("Gemm", [x, weight("w3", 10, 16), bias("b3", 10, "a3", "w3")], "y", transB=1)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", F, ["n", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(folder, kind, params, **inputs):
    folder.mkdir()
    document = params.model_dump(mode="json")
    request = StageRequest(kind=kind, params=document, inputs=inputs, workdir=folder)
    return run_request(request, lambda *_: None)


@pytest.fixture
def source(tmp_path):
    def save(**how):
        path = tmp_path / "model.onnx"
        onnx.save(trained(**how), path)
        return path

    return save


def calibrated(folder, source, precision="int8", **inputs):
    params = CalibrateParams(precision=precision)
    return run(folder, JobKind.CALIBRATE, params, onnx=source, **inputs)


def built(folder, typed, target, precision="int8", **inputs):
    runtime, _, gpu = target.rpartition(":")
    capability = {"h200": "sm_90"}.get(gpu, gpu)
    params = BuildParams(
        target=Target(runtime=Runtime(runtime), gpu=gpu),
        compute_capability=capability,
        precision=precision,
    )
    return run(folder, JobKind.BUILD, params, typed=typed, **inputs)


@pytest.mark.parametrize("integer_bias", [False, True])
def test_a_symmetric_model_becomes_an_int8_engine_without_calibration(
    tmp_path, source, integer_bias
):
    made = calibrated(tmp_path / "c", source(integer_bias=integer_bias))
    assert (made["facts"]["samples"], made["facts"]["method"]) == (0, "as it came")
    engine = built(tmp_path / "b", made["outputs"]["typed_half"], "tensorrt-rtx:sm_89")
    compute = engine["facts"]["compute"]
    assert (compute["source"], compute["found"]) == ("plan", 3)
    assert compute["types"] == {"int8": {"layers": 3, "share": 1.0}}
    # What it doesn't quantise is fp16 for GPUs.
    typed = onnx.load(made["outputs"]["typed_half"])
    assert TensorProto.FLOAT16 in shapes.types_of(typed).values()


@pytest.mark.parametrize("symmetric", [True, False])
def test_on_cpus_a_quantised_model_is_an_int8_engine_that_gives_what_it_gave(
    tmp_path, source, symmetric
):
    file = source(symmetric=symmetric)
    made = calibrated(tmp_path / "c", file)
    engine = built(tmp_path / "b", made["outputs"]["typed"], "onnxruntime:cpu")
    x = np.random.default_rng(0).uniform(-2, 3, (4, 3, 8, 8)).astype(np.float32)
    expected = OrtModel(file, optimisation="none").run({"x": x})["y"]
    actual = OrtModel(engine["outputs"]["engine"]).run({"x": x})["y"]
    step = float(np.abs(expected).max()) / 127
    assert np.abs(expected - actual).max() <= 2 * step
    assert engine["facts"]["compute"]["types"]["int8"]["layers"] >= 2


def test_tensorrt_is_not_tried_with_zero_points_that_it_cannot_take(tmp_path, source, monkeypatch):
    from workers.backends.trt import build as trt_build

    monkeypatch.setattr(trt_build, "build_plan", lambda *_, **__: pytest.fail("TensorRT has run"))
    made = calibrated(tmp_path / "c", source(symmetric=False))
    with pytest.raises(EngineBuildFailed, match="requires symmetric int8, zero point 0") as err:
        built(tmp_path / "b", made["outputs"]["typed_half"], "tensorrt-rtx:sm_89")
    assert "is unsigned" in err.value.detail
    assert "build it for cpu" in err.value.hint


def test_a_signed_zero_point_that_is_not_zero_is_named():
    model = trained()
    [zero] = [one for one in model.graph.initializer if one.name == "a1_z"]
    zero.CopyFrom(numpy_helper.from_array(np.int8(5), "a1_z"))
    with pytest.raises(EngineBuildFailed, match="'r1' has the zero point 5"):
        qat.refuse_asymmetric(model)
    qat.refuse_asymmetric(trained())


def test_calibration_data_of_a_quantised_model_only_run_it(tmp_path, source, capfd):
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((16, 3, 8, 8), np.float32))
    made = calibrated(tmp_path / "c", source(), calibration=data)
    assert "nothing is calibrated" in capfd.readouterr().out
    plain = calibrated(tmp_path / "d", source())
    sizes = [
        compute_of(onnx.load(one["outputs"]["typed"]), {"x": (1, 3, 8, 8)}) for one in (made, plain)
    ]
    assert [one.as_facts()["types"]["int8"]["layers"] for one in sizes] == [3, 3]


def test_fewer_samples_than_the_smallest_batch_run_a_quantised_model(tmp_path, source):
    data = tmp_path / "data.npz"
    np.savez(data, x=np.ones((3, 3, 8, 8), np.float32))
    sizes = {"min": (4, 3, 8, 8), "opt": (8, 3, 8, 8), "max": (8, 3, 8, 8)}
    params = CalibrateParams(profiles=[{"x": ShapeRange(**sizes)}])
    made = run(tmp_path / "c", JobKind.CALIBRATE, params, onnx=source(), calibration=data)
    assert made["facts"]["remainder_by"] == "calibration"
    float_model = matmul(tmp_path / "float.onnx")
    np.savez(data, x=np.ones((3, 4), np.float32))
    sizes = {"min": (4, 4), "opt": (8, 4), "max": (8, 4)}
    cast = CastParams(precision="fp16", profiles=[{"x": ShapeRange(**sizes)}])
    made = run(tmp_path / "d", JobKind.CAST, cast, onnx=float_model, calibration=data)
    assert made["facts"]["samples"] == 3


def test_integer_biases_become_the_floats_that_they_stand_for():
    model = trained(integer_bias=True)
    made = qat.for_gpus(model)
    x = np.random.default_rng(0).uniform(-2, 3, (4, 3, 8, 8)).astype(np.float32)
    outputs = [
        OrtModel(one.SerializeToString(), optimisation="none").run({"x": x})["y"]
        for one in (model, made)
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)
    assert not any(one.data_type == TensorProto.INT32 for one in made.graph.initializer)


def test_other_precisions_of_a_quantised_model_are_refused_with_the_way_out(tmp_path, source):
    file = source()
    with pytest.raises(CalibrationFailed, match="in int8, but fp8 was requested") as fp8:
        calibrated(tmp_path / "a", file, precision="fp8")
    with pytest.raises(CastFailed, match="quantised already") as fp16:
        run(tmp_path / "b", JobKind.CAST, CastParams(precision="fp16"), onnx=file)
    with pytest.raises(PrecisionMissed, match="isn't an fp32 engine") as fp32:
        built(tmp_path / "c", file, "tensorrt-rtx:sm_89", precision="fp32")
    for one in (fp8, fp16, fp32):
        assert "submit it as int8" in one.value.hint
        assert "no calibration data" in one.value.hint


def test_a_model_that_is_not_quantised_is_not_calibrated_without_data(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, F, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(CalibrationFailed, match="needs calibration data") as err:
        calibrated(tmp_path / "c", tmp_path / "model.onnx")
    assert "pass calibration data" in err.value.hint


# At submission.


def test_the_operators_of_a_file_are_seen_without_loading_it(tmp_path):
    body = helper.make_graph(
        [helper.make_node("Gemm", ["x", "x"], ["b"])],
        "body",
        [],
        [helper.make_tensor_value_info("b", F, ["n", "n"])],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body),
    ]
    function = helper.make_function(
        "own", "Own", ["a"], ["b"], [helper.make_node("Tanh", ["a"], ["b"])], []
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, ["n", "n"])],
        [helper.make_tensor_value_info("y", F, ["n", "n"])],
        [numpy_helper.from_array(np.zeros((256, 256), np.float32), "QuantizeLinear")],
    )
    model = helper.make_model(graph, functions=[function])
    onnx.save(model, tmp_path / "model.onnx")
    assert onnx_files.operators(tmp_path / "model.onnx") == {"Relu", "If", "Gemm", "Tanh"}


def test_a_file_of_too_many_nodes_is_not_looked_through(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    onnx.save(trained(), path)
    monkeypatch.setattr(protobuf, "_MAX_LOOKS", 10)
    assert onnx_files.operators(path) is None
    assert sources.look(path, SourceFormat.ONNX) == Look(may_be_quantized=True)


def test_a_first_look_tells_a_quantised_source_from_another(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(trained(), path)
    seen = sources.look(path, SourceFormat.ONNX)
    assert seen.may_be_quantized
    assert {"Conv", "Gemm"} <= seen.operators
    path.write_bytes(b"no model")
    assert sources.look(path, SourceFormat.ONNX) == Look()
    assert sources.look(path, SourceFormat.PT2) == Look()


QUANTIZED = Look(operators=frozenset({"Conv", "DequantizeLinear"}), may_be_quantized=True)


def submit(ledger, look, **changes):
    request = {
        "model": "digits",
        "source": {"digest": "sha256:" + "1" * 64, "format": "onnx"},
        "precisions": ["int8"],
        "targets": ["sm_89", "cpu"],
    }
    with ledger.db.write() as session:
        return submit_build(
            session,
            BuildRequest.model_validate(request | changes),
            Terms(fleet=ledger.fleet(session), runtimes=(Runtime.TENSORRT_RTX,)),
            look=look,
        ).build_id


def test_int8_of_a_quantised_source_is_taken_without_data_and_retried_so(ledger):
    build = submit(ledger, QUANTIZED)
    assert ledger.run_all() == [
        "export digits",
        "calibrate digits:int8",
        "build digits:int8@sm_89",
        "measure digits:int8",
        "build digits:int8@cpu",
        "measure digits:int8@cpu",
    ]
    assert ledger.view(build).state == "succeeded"
    other = submit(ledger, QUANTIZED, model="again")
    ledger.cancel(other)
    ledger.retry(other)
    assert ledger.view(other).state in ("queued", "running", "succeeded")
    with pytest.raises(CalibrationMissing):
        submit(ledger, Look(), model="plain")


def test_data_for_a_quantised_source_are_another_job_than_none(ledger):
    first = submit(ledger, QUANTIZED)
    second = submit(ledger, QUANTIZED, calibration={"digest": "sha256:" + "2" * 64})

    def key(build):
        return [one.key for one in ledger.view(build).jobs if one.kind == "calibrate"]

    assert key(first) != key(second)


def test_int8_for_turing_of_a_model_of_convolutions_alone_is_refused_at_once(ledger):
    data = {"digest": "sha256:" + "2" * 64}
    convolutions = Look(operators=frozenset({"Conv", "Relu"}))
    with pytest.raises(TargetUnsupported, match=r"fp16 on sm_75, .* and the model has none"):
        submit(ledger, convolutions, targets=["tensorrt-rtx:t4"], calibration=data)
    submit(ledger, convolutions, targets=["tensorrt-rtx:sm_86"], calibration=data)
    with_head = Look(operators=frozenset({"Conv", "Gemm"}))
    build = submit(ledger, with_head, targets=["tensorrt-rtx:t4"], calibration=data)
    [engine] = ledger.view(build).engines
    assert "only matrix products in int8" in engine.why
    other = submit(ledger, with_head, targets=["tensorrt-rtx:sm_86"], calibration=data)
    assert "half" not in ledger.view(other).engines[0].why
