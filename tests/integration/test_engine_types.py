"""What an engine really computes in, by its own layers; and what its report says of it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import PrecisionMissed
from farm.reports.layers import Layer, LayerReport
from farm.specs.options import BuilderOptions
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target
from farm.specs.shapes import ShapeRange
from farm.stages import BuildParams, JobKind
from workers.backends.trt import inspector
from workers.backends.trt.build import build_plan
from workers.graphs.compute import compute_of
from workers.report import engine_types, layers
from workers.stages.base import StageRequest, run_request

HALF = TensorProto.FLOAT16


def quantized(path, *names):
    """A chain of fp16 matrix products, 4×4 each, with Q/DQ around them all."""
    nodes, x = [], "x"
    tensors = {"s": np.float16(0.1), "z": np.int8(0)}
    for n, name in enumerate(names):
        tensors[f"w{n}"] = np.ones((4, 4), np.int8)
        last = n == len(names) - 1
        y = "y" if last else f"h{n}"
        nodes += [
            helper.make_node("QuantizeLinear", [x, "s", "z"], [f"q{n}"]),
            helper.make_node("DequantizeLinear", [f"q{n}", "s", "z"], [f"d{n}"]),
            helper.make_node("DequantizeLinear", [f"w{n}", "s", "z"], [f"wd{n}"]),
            helper.make_node("MatMul", [f"d{n}", f"wd{n}"], [y if last else f"m{n}"], name=name),
        ]
        if not last:
            nodes.append(helper.make_node("Relu", [f"m{n}"], [y], name=f"/relu{n}"))
        x = y
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", HALF, ["n", 4])],
        [helper.make_tensor_value_info("y", HALF, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def build(typed, folder, *, target="tensorrt:h200", precision="int8"):
    """Run the build stage; return its facts and its layer report."""
    runtime, _, gpu = target.rpartition(":")
    capability = {"h200": "sm_90"}.get(gpu, gpu)
    params = BuildParams(
        target=Target(runtime=runtime, gpu=gpu), compute_capability=capability, precision=precision
    )
    folder.mkdir()
    request = StageRequest(
        kind=JobKind.BUILD,
        params=params.model_dump(mode="json"),
        inputs={"typed": typed},
        workdir=folder,
    )
    made = run_request(request, lambda *_: None)
    with open(made["outputs"]["layers"]) as file:
        return made["facts"], LayerReport.model_validate_json(file.read())


def test_the_engine_says_that_a_layer_of_an_int8_network_runs_in_fp16(classic, tmp_path):
    classic.FALL_BACK.add("/b")
    facts, report = build(quantized(tmp_path / "typed.onnx", "/a", "/b"), tmp_path / "job")
    assert (facts["compute"]["source"], facts["compute"]["found"]) == ("inspector", 2)
    assert facts["compute"]["types"] == {
        "int8": {"layers": 1, "share": 0.5},
        "fp16": {"layers": 1, "share": 0.5},
    }
    a, b = report.products
    assert (a.type, a.typed, a.layer) == ("int8", None, "/a + /relu0")
    assert (b.type, b.typed, b.layer) == ("fp16", "int8", "/b")


def test_an_int8_engine_whose_layers_all_run_in_fp16_fails_with_the_reason(classic, tmp_path):
    classic.FALL_BACK.update(["/a", "/b"])
    typed = quantized(tmp_path / "typed.onnx", "/a", "/b")
    with pytest.raises(PrecisionMissed, match=r"none of its 2 .* MatMul '/a' runs in fp16") as err:
        build(typed, tmp_path / "job")
    assert "choose fp16" in err.value.hint


def test_the_report_of_a_plan_has_its_fusions_kernels_formats_and_memory(classic, tmp_path):
    _, report = build(quantized(tmp_path / "typed.onnx", "/a", "/b"), tmp_path / "job")
    assert "inspector" in report.source
    [fused] = [one for one in report.layers if one.name == "/a + /relu0"]
    assert fused.operators == ["/a", "/relu0"]
    assert fused.kernel == "a_kernel"
    assert (fused.inputs[0].type, fused.outputs[0].type) == ("int8", "half")
    assert fused.inputs[0].format == "Thirty-two wide channel vectorized row major Int8 format"
    assert report.fusions == {"CaskGemmConvolution": 1}
    assert report.kinds["CaskGemmConvolution"] == 2
    assert report.operators == 9
    assert report.memory.context_bytes == 1 << 20
    assert report.memory.context_bytes_by_profile == [1 << 20]
    assert report.weights["int8"].parameters == 33
    assert report.weights["float16"].bytes == 2
    assert [spec.name for spec in (*report.inputs, *report.outputs)] == ["x", "y"]
    assert report.profiles[0]["x"].opt == (8, 4)


def test_an_engine_that_cannot_be_read_back_is_told_by_its_network(classic, tmp_path, monkeypatch):
    monkeypatch.setattr(classic.Runtime, "deserialize_cuda_engine", lambda *_: None)
    facts, report = build(quantized(tmp_path / "typed.onnx", "/a", "/b"), tmp_path / "job")
    assert facts["compute"]["source"] == report.compute.source == "graph"
    assert report.source.startswith("the network")
    assert report.memory is None


@pytest.mark.parametrize("told", ["no JSON", '{"Layers": 5}', "{}", '{"Layers": [[]]}'])
def test_an_inspector_that_prints_otherwise_costs_the_report_and_not_the_engine(
    classic, tmp_path, monkeypatch, capfd, told
):
    monkeypatch.setattr(classic.EngineInspector, "get_engine_information", lambda *_: told)
    facts, _ = build(quantized(tmp_path / "typed.onnx", "/a"), tmp_path / "job")
    assert facts["compute"]["source"] == "graph"
    assert "can't parse the inspector's output" in capfd.readouterr().out


@pytest.mark.parametrize("names", [("/a", "/b"), ("", "")])
def test_every_product_is_named_by_a_layer_of_the_network_that_tensorrt_parses(tmp_path, names):
    # For real, by TensorRT-RTX's parser: the engine's layers are found by the same names.
    typed = quantized(tmp_path / "typed.onnx", *names)
    profile = {"x": ShapeRange(min=(1, 4), opt=(8, 4), max=(8, 4))}
    rtx, options, quiet = Runtime.TENSORRT_RTX, BuilderOptions(), lambda *_: None
    plan = build_plan(rtx, typed, [profile], "sm_89", options, quiet)
    model = onnx.load(typed)
    compute = compute_of(model, {"x": (8, 4)})
    multiplying = [one for one in plan.layers if one.type == "MATRIX_MULTIPLY"]
    _, found = engine_types.of_engine(compute, multiplying, model)
    assert found == len(compute.products) == 2


def test_what_onnxruntime_put_in_the_place_of_others_is_counted(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="/c"),
            helper.make_node("Relu", ["c"], ["y"], name="/r"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "typed.onnx")
    _, report = build(
        tmp_path / "typed.onnx", tmp_path / "job", target="onnxruntime:cpu", precision="fp32"
    )
    assert report.fusions == {"FusedConv": 1}
    assert (report.operators, len(report.layers)) == (2, 1)
    assert report.weights["float32"].model_dump() == {"parameters": 108, "bytes": 432}


def told(**changes):
    layer = {
        "Name": "a",
        "LayerType": "gemm",
        "Inputs": [{"Name": "x", "Dimensions": [8, 4], "Format/Datatype": "Half"}],
        "Outputs": [{"Name": "y", "Dimensions": [8, 4], "Format/Datatype": "Half"}],
        "Metadata": "[ONNX Layer: /a]",
    } | changes
    return inspector.layers_of(json.dumps({"Layers": [layer], "Bindings": []}))


def in_engine(folder, layers, *names):
    model = onnx.load(quantized(folder / "m.onnx", *names))
    return engine_types.of_engine(compute_of(model, {"x": (8, 4)}), layers, model)


@pytest.mark.parametrize(
    ("kernel", "first", "expected"),
    [
        ("sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize64x64x64", "Half", "int8"),
        ("sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckcrs", "Float", "tf32"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn", "BFloat16", "bf16"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn", "FP8", "fp8"),
        ("ampere_scudnn_128x64_relu_small_nn_v1", "Row major linear FP32", "fp32"),
        ("", "Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("", "Four wide channel vectorized row major Int8 format.", "int8"),
        ("", "Unknown format", "int8"),
    ],
)
def test_the_type_of_a_product_is_its_kernels_or_else_its_inputs(tmp_path, kernel, first, expected):
    inputs = [{"Name": "x", "Dimensions": [8, 4], "Format/Datatype": first}]
    found, _ = in_engine(tmp_path, told(TacticName=kernel, Inputs=inputs), "/a")
    assert [one.type for one in found.products] == [expected]


def test_a_layer_that_only_moves_a_products_tensors_does_not_say_its_type(tmp_path):
    found, count = in_engine(tmp_path, told(LayerType="Reformat"), "/a")
    assert ([one.type for one in found.products], count) == (["int8"], 0)
    engine_types.check_engine(Precision.INT8, found)


@pytest.mark.parametrize("inside", ["[ONNX Layer: /b]", "[ONNX Layer: node_of_q0]"])
def test_inputs_tell_nothing_of_a_layer_with_several_products_or_that_quantises_itself(
    tmp_path, inside
):
    # A fused region takes fp16 in, and multiplies in int8 inside.
    region = told(LayerType="kgen", Metadata="[ONNX Layer: /a]\x1e" + inside)
    found, count = in_engine(tmp_path, region, "/a", "/b")
    assert ([one.type for one in found.products], count) == (["int8", "int8"], 0)
    certain = [region[0].model_copy(update={"kernel": "sm80_xmma_gemm_f16f16_f16f32_f32_tn"})]
    assert in_engine(tmp_path, certain, "/a", "/b")[0].products[0].type == "fp16"


def test_layers_without_details_are_names_and_several_operators_are_told_apart():
    assert inspector.layers_of('{"Layers": ["a + b"]}')[0].name == "a + b"
    separated = ["[ONNX Layer: /a]\x1e[ONNX Layer: /b]", "[ONNX Layer: /a][ONNX Layer: /b]"]
    separated.append("x [ONNX Layer: /a]\x1f[ONNX Layer: /b[0]]")
    found = [inspector.operators_of(one) for one in separated]
    assert found == [["/a", "/b"], ["/a", "/b"], ["/a", "/b[0]"]]


def test_weights_of_four_bits_take_half_a_byte():
    tensor = helper.make_tensor("w", TensorProto.INT4, [3], [1, 2, 3])
    graph = helper.make_graph([], "g", [], [], [tensor])
    assert layers.weights_of(helper.make_model(graph)) == {"int4": {"parameters": 3, "bytes": 2}}


def test_a_report_of_before_can_still_be_read():
    old = {"source": "s", "compute": {"macs": None, "types": {}}, "products": [], "layers": []}
    assert LayerReport.model_validate(old).memory is None
    read = old | {"compute": {"macs": None, "types": {}, "source": "engine"}}
    assert LayerReport.model_validate(read).compute.source == "engine"
    assert Layer(name="a", type="t", inputs=[], outputs=[]).operators == []
