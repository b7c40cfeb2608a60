"""What a plan of TensorRT-RTX says of itself: held against plans of the installed version."""

from __future__ import annotations

import random
import struct
from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import PrecisionMissed
from farm.reports.layers import LayerReport
from farm.specs.options import BuilderOptions
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime, Target
from farm.specs.shapes import ShapeRange
from farm.stages import BuildParams, JobKind
from workers.backends.trt import build as trt_build
from workers.backends.trt import library
from workers.backends.trt.rtx_plan import read_plan
from workers.graphs.compute import Compute, Product, compute_of
from workers.report import engine_types
from workers.stages.base import StageRequest, run_request

FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
QUANTIZED = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
OPT = (4, 16, 8, 8)
PROFILE = {"x": ShapeRange(min=(1, 16, 8, 8), opt=OPT, max=(8, 16, 8, 8))}
node = helper.make_node


class Net:
    """A graph of one type, or of fp16 around products of a quantised one."""

    def __init__(self, precision):
        self._quantized = QUANTIZED.get(precision)
        self._float = FLOATS.get(precision, TensorProto.FLOAT16)
        self._random = np.random.default_rng(0)
        self._pairs = {}
        self.nodes, self.tensors = [], []

    def constant(self, name, values, type_=None):
        dtype = helper.tensor_dtype_to_np_dtype(type_ or self._float)
        self.tensors.append(numpy_helper.from_array(np.asarray(values).astype(dtype), name))
        return name

    def weight(self, name, *shape):
        return self.quantized(self.constant(name, 0.1 * self._random.standard_normal(shape)))

    def quantized(self, name):
        if self._quantized is None or name in self._pairs:
            return self._pairs.get(name, name)
        ends = [name, self.constant(f"{name}_s", 0.02), f"{name}_z"]
        self.constant(f"{name}_z", 0, self._quantized)
        self.nodes += [
            node("QuantizeLinear", ends, [f"{name}_q"], name=f"{name}_Q"),
            node("DequantizeLinear", [f"{name}_q", *ends[1:]], [f"{name}_d"], name=f"{name}_D"),
        ]
        self._pairs[name] = f"{name}_d"
        return f"{name}_d"

    def add(self, op_type, inputs, output, **attributes):
        self.nodes.append(node(op_type, inputs, [output], name=f"/{output}", **attributes))
        return output

    def linear(self, x, name, inputs, outputs):
        product = [self.quantized(x), self.weight(f"w_{name}", inputs, outputs)]
        bias = self.constant(f"b_{name}", np.zeros(outputs))
        return self.add("Add", [self.add("MatMul", product, f"mm_{name}"), bias], f"lin_{name}")

    def model(self, x, y):
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
            self.tensors,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def network(precision):
    """Two convolutions, an attention and an MLP: 2 convolutions and 8 products, 2 never quantised."""
    net = Net(precision)
    x = net.add("Cast", ["x"], "cast", to=net._float)
    for name, inputs in (("c1", 16), ("c2", 32)):
        weight = net.weight(f"w_{name}", 32, inputs, 3, 3)
        net.add("Conv", [net.quantized(x), weight], name, pads=[1, 1, 1, 1])
        x = net.add("Relu", [name], f"relu_{name}")
    shape = net.constant("tokens", [0, 32, 64], TensorProto.INT64)
    x = net.add("Transpose", [net.add("Reshape", [x, shape], "flat")], "t", perm=[0, 2, 1])
    q, k, v = (net.linear(x, name, 32, 32) for name in "qkv")
    keys = net.add("Transpose", [k], "kt", perm=[0, 2, 1])
    weights = net.add("Softmax", [net.add("MatMul", [q, keys], "scores")], "probs", axis=-1)
    x = net.add("Add", [x, net.linear(net.add("MatMul", [weights, v], "ctx"), "o", 32, 32)], "res")
    x = net.linear(net.add("Relu", [net.linear(x, "up", 32, 64)], "h"), "down", 64, 32)
    net.add("Cast", [x], "y", to=TensorProto.FLOAT)
    return net.model(["n", 16, 8, 8], ["n", 64, 32])


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Model × profiles × capability → the plan."""
    file = tmp_path_factory.mktemp("plans") / "model.onnx"

    def plan_of(model, capability, *profiles):
        onnx.save(model, file)
        report = lambda *_: None  # noqa: E731
        made = trt_build.build_plan(
            Runtime.TENSORRT_RTX,
            file,
            profiles or (PROFILE,),
            capability,
            BuilderOptions(),
            report,
            model=model,
        )
        return made.data

    return plan_of


@pytest.fixture(scope="module")
def built(plans):
    """Precision × capability → the model and its plan."""

    @cache
    def of(precision, capability):
        model = network(precision)
        return model, plans(model, capability)

    return of


def types_in(model, plan):
    """Type → how many products, by the plan; all of them must be found there."""
    compute = compute_of(model, {"x": OPT})
    said, found = engine_types.of_plan(compute, read_plan(plan))
    assert found == len(compute.products) == 10
    return Counter(one.type for one in said.products)


@pytest.mark.parametrize("capability", ["sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_plan_computes_in_the_types_of_its_graph_from_ampere_on(built, precision, capability):
    expected = {precision: 10} if precision != "int8" else {"int8": 8, "fp16": 2}
    assert types_in(*built(precision, capability)) == expected


@pytest.mark.parametrize("capability", ["sm_89", "sm_120"])
def test_a_plan_of_fp8_computes_in_fp8(built, capability):
    assert types_in(*built("fp8", capability)) == {"fp8": 8, "fp16": 2}


def test_a_plan_for_turing_has_int8_in_its_matrix_products_alone(built):
    model, plan = built("int8", "sm_75")
    assert types_in(model, plan) == {"int8": 6, "fp16": 4}
    said, _ = engine_types.of_plan(compute_of(model, {"x": OPT}), read_plan(plan))
    convolutions = [one for one in said.products if one.op_type == "Conv"]
    assert [(one.type, one.typed) for one in convolutions] == [("fp16", "int8")] * 2
    assert types_in(*built("fp16", "sm_75")) == {"fp16": 10}


def test_a_plan_has_its_version_its_steps_and_the_onnx_nodes_in_them(built):
    read = read_plan(built("int8", "sm_89")[1])
    assert read.version == library.load_runtime(Runtime.TENSORRT_RTX).__version__
    assert read.schema is not None
    [first, second] = [one for one in read.layers if one.type == "convolution"]
    assert [(one.type, one.shape) for one in first.inputs[:2]] == [
        ("int8", [-1, 16, 8, 8]),
        ("int8", [32, 16, 3, 3]),
    ]
    assert first.outputs[0].type == "half"
    assert {"/c1", "/relu_c1"} <= set(first.operators)
    assert "/c2" in second.operators
    [attention] = [one for one in read.layers if {"/scores", "/ctx"} <= set(one.operators)]
    assert "/probs" in attention.operators
    named = {operator for one in read.layers for operator in one.operators}
    assert {"/res", "/lin_up", "/h", "/lin_down"} <= named


def test_a_plan_has_its_constants_by_type_and_what_a_context_takes(built):
    # 8 quantised weights; what else there is are scales and biases.
    weights = 32 * 9 * (16 + 32) + 4 * 32 * 32 + 2 * 32 * 64
    memory = read_plan(built("int8", "sm_89")[1]).memory
    assert memory.constants["int8"] == weights
    assert memory.weights_bytes == sum(memory.constants.values()) < 1.1 * weights
    assert read_plan(built("fp16", "sm_89")[1]).memory.constants["half"] >= 2 * weights
    # The output of a convolution at the largest batch in half, and its like.
    assert memory.context_bytes > 2 * 8 * 32 * 8 * 8
    assert memory.context_bytes_by_profile == [memory.context_bytes]


def single(op_type, x, w, precision, **attributes):
    net = Net(precision)
    ends = [net.quantized("x"), net.weight("w", *w)]
    net.nodes.append(node(op_type, ends, ["y"], name="/it", **attributes))
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        net.nodes,
        "g",
        [helper.make_tensor_value_info("x", half, x)],
        [helper.make_tensor_value_info("y", half, None)],
        net.tensors,
    )
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10), {
        "x": ShapeRange(min=x, opt=x, max=x)
    }


@pytest.mark.parametrize(
    ("op_type", "x", "w", "attributes", "turing", "ada"),
    [
        ("Conv", (2, 32, 16, 16), (32, 32, 1, 1), {}, "fp16", "int8"),
        ("Conv", (2, 32, 16, 16), (32, 1, 3, 3), {"group": 32}, "fp16", "int8"),
        ("Conv", (2, 16, 64), (32, 16, 3), {}, "fp16", "int8"),
        ("ConvTranspose", (2, 16, 8, 8), (16, 32, 2, 2), {"strides": [2, 2]}, "fp16", "fp16"),
        ("MatMul", (32, 64), (64, 128), {}, "int8", "int8"),
        ("MatMul", (2, 32, 64), (64, 1), {}, "int8", "int8"),
        ("Gemm", (1, 64), (128, 64), {"transB": 1}, "int8", "int8"),
    ],
)
def test_which_products_have_int8_on_which_gpu(plans, op_type, x, w, attributes, turing, ada):
    model, profile = single(op_type, x, w, "int8", **attributes)
    graph = compute_of(model, {"x": x})
    assert [one.type for one in graph.products] == ["int8"]
    for capability, expected in (("sm_75", turing), ("sm_89", ada)):
        said, found = engine_types.of_plan(graph, read_plan(plans(model, capability, profile)))
        assert (said.products[0].type, found) == (expected, 1)
        # And this is known before TensorRT runs.
        if expected == "int8":
            engine_types.check_rtx(Precision.INT8, graph, capability)
        else:
            with pytest.raises(PrecisionMissed, match=f"int8 {op_type} in fp16 on {capability}"):
                engine_types.check_rtx(Precision.INT8, graph, capability)


def test_a_product_by_a_vector_is_found_in_the_kernel_that_adds_it_up(plans):
    model, profile = single("MatMul", (32, 64), (64, 1), "fp16")
    read = read_plan(plans(model, "sm_89", profile))
    said, found = engine_types.of_plan(compute_of(model, {"x": (32, 64)}), read)
    assert (said.products[0].type, found) == ("fp16", 1)


def test_products_in_a_branch_are_found_by_their_names(plans):
    info = helper.make_tensor_value_info

    def branch(name):
        weights = numpy_helper.from_array(np.ones((32, 16), np.float32), f"w_{name}")
        nodes = [node("Gemm", ["h", f"w_{name}"], [f"y_{name}"], name=f"/{name}")]
        outputs = [info(f"y_{name}", TensorProto.FLOAT, ["n", 16])]
        return helper.make_graph(nodes, name, [], outputs, [weights])

    graph = helper.make_graph(
        [
            node("MatMul", ["x", "w"], ["h"], name="/first"),
            node("ReduceSum", ["h"], ["s"], keepdims=0),
            node("Greater", ["s", "zero"], ["c"]),
            node("If", ["c"], ["y"], name="/if", then_branch=branch("a"), else_branch=branch("b")),
        ],
        "g",
        [info("x", TensorProto.FLOAT, ["n", 16])],
        [info("y", TensorProto.FLOAT, ["n", 16])],
        [
            numpy_helper.from_array(np.ones((16, 32), np.float32), "w"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    profile = {"x": ShapeRange(min=(1, 16), opt=(4, 16), max=(8, 16))}
    read = read_plan(plans(model, "sm_89", profile))
    said, found = engine_types.of_plan(compute_of(model, {"x": (4, 16)}), read)
    assert (found, [one.type for one in said.products]) == (3, ["fp32"] * 3)


def test_a_plan_of_two_profiles_is_told_once_and_has_its_memory_by_profile(plans):
    large = {"x": ShapeRange(min=(16, 16, 8, 8), opt=(32, 16, 8, 8), max=(64, 16, 8, 8))}
    model = network("fp16")
    read = read_plan(plans(model, "sm_89", PROFILE, large))
    assert sum("/c1" in one.operators for one in read.layers if one.type == "convolution") == 1
    small, big = read.memory.context_bytes_by_profile
    assert small < big == read.memory.context_bytes
    one = read_plan(plans(model, "sm_89")).memory
    assert read.memory.constants == one.constants


# What can't be read.


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.5])
def test_a_plan_that_is_cut_off_is_read_as_far_as_it_is_whole_or_not_at_all(built, share):
    model, plan = built("int8", "sm_89")
    read = read_plan(plan[: int(share * len(plan))])
    if read is not None:
        assert engine_types.of_plan(compute_of(model, {"x": OPT}), read)[1] == 10


def test_garbled_bytes_give_a_report_or_none_and_never_an_error(built):
    _, plan = built("fp16", "sm_120")
    start = plan.find(b"header {")
    rng = random.Random(0)
    for _ in range(30):
        garbled = bytearray(plan[: start + 80_000])
        for _ in range(rng.choice([1, 50, 5000])):
            garbled[rng.randrange(len(garbled))] = rng.choice(b'\x00{}"= \n[]\xffN')
        read = read_plan(bytes(garbled))
        assert read is None or all(one.outputs for one in read.layers)


def framed(text):
    """A program's text as a plan has it."""
    return b"NLYM" + bytes(4) + struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "plan",
    [
        b"",
        b"NLYM",
        b"NLYM" * 200_000,
        b"NLYM" + b"\xff" * 12 + b"header {",
        framed(b"header {\n"),
        framed(b"header {\n" + b"}\nmain {\n" * 100_000),
        framed(b"header {\n}\nmain {\n" + b"\n  a={" * 300_000),
        framed(b"header {\n}\nmain {\n  a={ " + b'b={ "' * 300_000),
        framed(b"header {\n}\nmain {\n  a={ " + b"c" * 2_000_000),
        framed(b"header {\n}\nmain {\n  a={ " + b"{" * 2_000_000),
        framed(b"header {\n}\nmain {\n  a={ " + b'b = "' * 300_000),
        b"".join([framed(b"header {\n}\n")] * 60_000),
    ],
    ids=range(12),
)
def test_hostile_bytes_are_no_plan(plan):
    assert read_plan(plan) is None


def test_words_that_are_not_numbers_are_unknown():
    text = (
        b"header {\n  version = x\n  region = { name=r size=9x place=accelerator }\n}\n"
        b'descriptors {\n  tensor={ dims={ 9999999999999999999999 "n" } name="t" type=odd }\n}\n'
        b'main {\n  corrltn={ name="c" output={"o" } input={"t" "u" } layers="[ONNX Layer: /c]" }\n}\n'
    )
    read = read_plan(framed(text))
    assert (read.version, read.schema, read.memory.context_bytes) == (None, None, 0)
    [layer] = read.layers
    assert [(one.type, one.shape) for one in layer.inputs] == [("odd", [-1, -1]), (None, None)]
    one = Product(name="/c", op_type="Conv", type="int8", macs=1, not_quantized=())
    said, found = engine_types.of_plan(Compute(products=[one]), read)
    assert (said.products, found) == ([one], 0)


# In the build stage.


def build(folder, model, capability, precision):
    folder.mkdir()
    onnx.save(model, folder / "typed.onnx")
    params = BuildParams(
        target=Target(runtime=Runtime.TENSORRT_RTX, gpu=capability),
        compute_capability=capability,
        precision=precision,
        profiles=(PROFILE,),
    )
    request = StageRequest(
        kind=JobKind.BUILD,
        params=params.model_dump(mode="json"),
        inputs={"typed": folder / "typed.onnx"},
        workdir=folder,
    )
    made = run_request(request, lambda *_: None)
    with open(made["outputs"]["layers"]) as file:
        return made["facts"], LayerReport.model_validate_json(file.read())


def test_the_share_of_an_rtx_engine_is_the_plans_and_says_so(tmp_path):
    facts, report = build(tmp_path / "ada", network("int8"), "sm_89", "int8")
    assert facts["compute"]["source"] == report.compute.source == "plan"
    assert (facts["compute"]["found"], len(report.products)) == (10, 10)
    turing, _ = build(tmp_path / "turing", network("int8"), "sm_75", "int8")
    shares = [one["compute"]["types"]["int8"]["share"] for one in (facts, turing)]
    assert shares[0] > 0.8 > 0.4 > shares[1] > 0
    assert report.source.startswith("the plan of TensorRT-RTX 1.")
    assert report.kinds["convolution"] == 2
    assert report.fusions["convolution"] == 2
    assert report.memory.constants["int8"] > 0


def test_int8_of_convolutions_alone_for_turing_is_refused_before_anything_is_built(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(trt_build, "build_plan", lambda *_, **__: pytest.fail("TensorRT has run"))
    net = Net("int8")
    x = net.add("Cast", ["x"], "cast", to=TensorProto.FLOAT16)
    net.add("Conv", [net.quantized(x), net.weight("w", 32, 16, 3, 3)], "c")
    net.add("Cast", ["c"], "y", to=TensorProto.FLOAT)
    model = net.model(["n", 16, 8, 8], ["n", 32, 6, 6])
    with pytest.raises(PrecisionMissed, match=r"int8 Conv in fp16 on sm_75") as err:
        build(tmp_path / "job", model, "sm_75", "int8")
    assert "choose fp16 for sm_75" in err.value.hint


def test_int8_for_turing_that_is_int8_in_its_head_alone_is_refused_by_its_share():
    def made(name, op_type, type_, macs, typed=None):
        return Product(
            name=name, op_type=op_type, type=type_, macs=macs, not_quantized=(), typed=typed
        )

    graph = Compute(products=[made("c", "Conv", "int8", 9_990), made("y", "Gemm", "int8", 10)])
    with pytest.raises(PrecisionMissed, match=r"only 0\.10% of the arithmetic .* would be int8"):
        engine_types.check_rtx(Precision.INT8, graph, "sm_75")
    engine_types.check_rtx(Precision.INT8, graph, "sm_86")
    engine = Compute(
        products=[made("c", "Conv", "fp16", 9_990, "int8"), made("y", "Gemm", "int8", 10)]
    )
    with pytest.raises(PrecisionMissed, match=r"only 0\.10% .* Conv 'c' runs in fp16"):
        engine_types.check_engine(Precision.INT8, engine)
    more = Compute(products=[made("c", "Conv", "int8", 900), made("y", "Gemm", "int8", 100)])
    engine_types.check_rtx(Precision.INT8, more, "sm_75")
    # What the graph itself lacks isn't the builder's fault.
    small = Compute(products=[made("c", "Conv", "fp16", 9_990), made("y", "Gemm", "int8", 10)])
    engine_types.check_engine(Precision.INT8, small)
    unknown = Compute(products=[made("c", "Conv", "int8", None), made("y", "Gemm", "int8", None)])
    engine_types.check_rtx(Precision.INT8, unknown, "sm_75")


def test_an_int8_engine_whose_plan_has_no_int8_fails_with_what_it_runs_in(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_types, "check_rtx", lambda *_: None)
    net = Net("int8")
    x = net.add("Cast", ["x"], "cast", to=TensorProto.FLOAT16)
    net.add("Conv", [net.quantized(x), net.weight("w", 32, 16, 3, 3)], "c")
    net.add("Cast", ["c"], "y", to=TensorProto.FLOAT)
    model = net.model(["n", 16, 8, 8], ["n", 32, 6, 6])
    with pytest.raises(PrecisionMissed, match=r"none of its 1 .* Conv '/c' runs in fp16"):
        build(tmp_path / "job", model, "sm_75", "int8")


def test_a_plan_that_cannot_be_read_is_told_by_its_graph(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("workers.backends.trt.rtx_plan.read_plan", lambda _: None)
    facts, report = build(tmp_path / "job", network("int8"), "sm_89", "int8")
    assert (facts["compute"]["source"], facts["compute"]["found"]) == ("graph", None)
    assert report.source.startswith("the network")
    assert "can't be read" in capfd.readouterr().out
