"""Graphs of every floating-point type, and of bodies: each engine is of the types it says, and right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from farm.errors import CastFailed, EngineBuildFailed
from farm.specs.precision import Precision
from farm.specs.source import DataKind
from tests.zoo import runner
from workers.backends.ort.cpu import OrtModel
from workers.graphs import casting, check, floats, shapes, walk
from workers.graphs.modern import described
from workers.graphs.normal import is_normal, normalised
from workers.graphs.opsets import upgraded
from workers.graphs.rounding import rounded_model
from workers.quantize import choosing
from workers.quantize.magnitudes import measured
from workers.stages.build.refusals import refuse_on_turing

F, H, BF, D = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
)
I64, BOOL = TensorProto.INT64, TensorProto.BOOL
Shape = Sequence[int | str] | None
Tensors = Mapping[str, np.ndarray]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    fan = np.prod(shape[:-1]) if len(shape) > 1 else shape[0]
    made = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)
    return made.astype(np.float32)


def node(kind: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def value(name: str, kind: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    tensors: Tensors | None = None,
    name: str = "graph",
) -> onnx.GraphProto:
    made = [numpy_helper.from_array(np.asarray(v), n) for n, v in (tensors or {}).items()]
    return helper.make_graph(nodes, name, inputs, outputs, made)


def model(made: onnx.GraphProto, opset: int = 20) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(made, opset_imports=imports, ir_version=6 if opset < 13 else 9)


def squeezes(opset: int) -> onnx.ModelProto:
    """An If around a Squeeze, as tracing exporters write ``x.squeeze(3)`` of a dynamic shape."""
    axes = {"axes": [3]} if opset < 13 else {}
    # Exporters call what both branches make alike.
    then = graph(
        [node("Squeeze", "p" if axes else "p three", "made", **axes)],
        [],
        [value("made", F, None)],
        {} if axes else {"three": np.array([3])},
        "then",
    )
    other = graph([node("Identity", "p", "made")], [], [value("made", F, None)], name="else")
    nodes = [
        node("Conv", "x w b", "a", pads=[1] * 4),
        node("Relu", "a", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Shape", "p", "s"),
        node("Gather", "s at", "size"),
        node("Equal", "size one", "is_one"),
        node("If", "is_one", "q", then_branch=then, else_branch=other),
        node("Reshape", "q shape", "f"),
        node("Gemm", "f k", "y"),
    ]
    tensors = {
        "w": random(16, 3, 3, 3),
        "b": random(16),
        "k": random(16, 10),
        "one": np.array(1),
        "at": np.array(3),
        "shape": np.array([-1, 16]),
    }
    inputs = [value("x", F, ["n", 3, 16, 16])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 10])], tensors), opset)


def branches() -> onnx.ModelProto:
    """An If whose branches multiply an outer activation by weights of their own."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        nodes = [node("Gemm", "r w", "g"), node("Relu", "g", "o")]
        return graph(nodes, [], [value("o", F, ["n", 32])], {"w": random(32, 32, seed=seed)}, name)

    nodes = [
        node("Gemm", "x v", "h"),
        node("Relu", "h", "r"),
        node("ReduceMean", "x", "m", keepdims=0),
        node("Greater", "m zero", "c"),
        node("If", "c", "f", then_branch=branch("then", 1), else_branch=branch("else", 2)),
        node("Gemm", "f k", "y"),
    ]
    tensors = {"v": random(16, 32), "k": random(32, 8), "zero": np.float32(0)}
    inputs = [value("x", F, ["n", 16])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 8])], tensors))


def turns() -> onnx.ModelProto:
    """A Loop that multiplies a state which it carries."""
    body = graph(
        [
            node("MatMul", "s u", "su"),
            node("Add", "su r", "sa"),
            node("Tanh", "sa", "sn"),
            node("Identity", "ci", "co"),
        ],
        [value("it", I64, []), value("ci", BOOL, []), value("s", F, ["n", 32])],
        [value("co", BOOL, []), value("sn", F, ["n", 32])],
    )
    nodes = [
        node("Gemm", "x v", "h"),
        node("Relu", "h", "r"),
        node("Loop", "trips true r", "f", body=body),
        node("Gemm", "f k", "y"),
    ]
    tensors = {
        "v": random(16, 32),
        "u": random(32, 32),
        "k": random(32, 8),
        "trips": np.array(3),
        "true": np.array(True),
    }
    inputs = [value("x", F, ["n", 16])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 8])], tensors))


def scanned() -> onnx.ModelProto:
    """A Scan over the steps of a sequence."""
    body = graph(
        [
            node("MatMul", "s u", "su"),
            node("Add", "su t", "sa"),
            node("Tanh", "sa", "sn"),
            node("Identity", "sn", "each"),
        ],
        [value("s", F, ["n", 16]), value("t", F, ["n", 16])],
        [value("sn", F, ["n", 16]), value("each", F, ["n", 16])],
    )
    nodes = [
        node("Transpose", "x", "steps", perm=[1, 0, 2]),
        node("ReduceMean", "x one", "s0", keepdims=0),
        node("Scan", "s0 steps", "last all", body=body, num_scan_inputs=1),
        node("ReduceMean", "all zero", "mean", keepdims=0),
        node("Add", "last mean", "sum"),
        node("MatMul", "sum k", "y"),
    ]
    tensors = {
        "u": random(16, 16),
        "k": random(16, 8),
        "one": np.array([1]),
        "zero": np.array([0]),
    }
    inputs = [value("x", F, ["n", 5, 16])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 8])], tensors))


def norm(summed: bool = False) -> onnx.ModelProto:
    """A norm that is written out, after activations of some hundreds: the square leaves fp16."""
    mean = [node("ReduceMean", "t last", "mu")]
    square = [node("Pow", "df two", "sq"), node("ReduceMean", "sq last", "var")]
    if summed:
        mean = [node("ReduceSum", "t last", "total"), node("Mul", "total share", "mu")]
        square = [
            node("Mul", "df df", "sq"),
            node("ReduceSum", "sq last", "energy"),
            node("Mul", "energy share", "var"),
        ]
    nodes = [
        node("Conv", "x w", "a", strides=[4, 4]),
        node("Reshape", "a flat", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        *mean,
        node("Sub", "t mu", "df"),
        *square,
        node("Add", "var eps", "ve"),
        node("Sqrt", "ve", "sd"),
        node("Div", "df sd", "nm"),
        node("MatMul", "nm u", "v"),
        node("Relu", "v", "vr"),
        node("ReduceMean", "vr one", "p", keepdims=0),
        node("MatMul", "p k", "y"),
    ]
    tensors = {
        "w": random(64, 3, 4, 4) * 8,
        "flat": np.array([0, 64, -1]),
        "last": np.array([-1]),
        "one": np.array([1]),
        "two": np.float32(2),
        "share": np.float32(1 / 64),
        "eps": np.float32(1e-6),
        "u": random(64, 64),
        "k": random(64, 10),
    }
    inputs = [value("x", F, ["n", 3, 32, 32])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 10])], tensors))


def pixels(count: int = 32) -> np.ndarray:
    """Smooth images in 0 to 255."""
    numbers = np.random.default_rng(5)
    low = np.kron(numbers.random((count, 3, 8, 8)) * 255, np.ones((1, 1, 4, 4)))
    noise = numbers.standard_normal((count, 3, 32, 32)) * 10
    return np.clip(low + noise, 0, 255).astype(np.float32)


def noise(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


def build(
    folder: Path,
    made: onnx.ModelProto | Path,
    samples: Tensors,
    precisions: Sequence[str],
    gpus: Sequence[str],
) -> dict[tuple[str, str], runner.Built]:
    folder = Path(mkdtemp(dir=folder))
    path = made if isinstance(made, Path) else folder / "model.onnx"
    if isinstance(made, onnx.ModelProto):
        onnx.save(made, str(path))
    kind = "pt2" if path.suffix == ".pt2" else "onnx"
    source = runner.Source(name="types", path=path, format=kind, samples=samples)
    wanted = [Precision(one) for one in precisions]
    built = runner.build(source, precisions=wanted, gpus=gpus, folder=folder)
    return {(str(one.precision), one.target.partition(":")[2]): one for one in built}


def all_right(built: Mapping[object, runner.Built], cosine: float) -> None:
    for key, one in built.items():
        assert one.error is None, (key, one.error, one.error and one.error.hint)
        assert one.accuracy["cosine_min"] > cosine, key


BODIES = {
    "if-11": (lambda: squeezes(11), (3, 16, 16)),
    "if-13": (lambda: squeezes(13), (3, 16, 16)),
    "if": (branches, (16,)),
    "loop": (turns, (16,)),
    "scan": (scanned, (5, 16)),
}


@pytest.mark.parametrize("name", BODIES)
def test_control_flow_is_right_in_every_precision_for_every_gpu(name: str, tmp_path: Path) -> None:
    make, shape = BODIES[name]
    samples = {"x": noise(64, *shape)}
    all_right(build(tmp_path, make(), samples, ["fp16"], ["cpu", "sm_75", "sm_89"]), 0.999)
    all_right(build(tmp_path, make(), samples, ["bf16"], ["sm_89"]), 0.999)
    if name != "scan":  # its own product is ModelOpt's to leave alone
        all_right(build(tmp_path, make(), samples, ["int8"], ["sm_89"]), 0.99)


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_typed_and_not_only_what_is_around_them(name: str, tmp_path: Path) -> None:
    make, shape = BODIES[name]
    wide = upgraded(described(make()), 20)
    batches = [{"x": noise(8, *shape)}, {"x": -noise(8, *shape)}]
    chosen = choosing.choose(wide, measured(wide, batches, tmp_path), H, DataKind.CALIBRATION)
    typed = casting.typed(wide, chosen.types)
    check.check_model(typed)
    types = shapes.types_of(typed)
    for body in (b for n in typed.graph.node for b in walk.bodies(n)):
        computing = [n for n in body.node if n.op_type not in ("Cast", "Identity")]
        kinds = {types[n.output[0]] for n in computing}
        assert kinds <= {H}, name


@pytest.mark.parametrize("opset", [11, 13])
def test_bodies_are_brought_to_the_new_opset(opset: int) -> None:
    given = squeezes(opset)
    made = upgraded(described(given), 19)
    check.check_model(made)
    x = {"x": noise(2, 3, 16, 16)}
    before, after = (
        OrtModel(m.SerializeToString(), optimisation="none").run(x) for m in (given, made)
    )
    np.testing.assert_array_equal(before["y"], after["y"])


def test_a_branch_that_no_data_take_is_measured_by_force(tmp_path: Path) -> None:
    wide = normalised(branches())
    found = measured(wide, [{"x": np.abs(noise(8, 16))}], tmp_path)
    products = [n for n in walk.all_nodes(wide.graph) if n.op_type == "Gemm"]
    assert len(products) == 4
    assert all(found[n.output[0]].most > 0 for n in products)


def sequences() -> onnx.ModelProto:
    """Values that pass through a sequence, whose type inference doesn't tell."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("SplitToSequence", "a four", "parts", axis=1),
        node("SequenceAt", "parts zero", "p"),
        node("ConcatFromSequence", "parts", "back", axis=1),
        node("MatMul", "back k", "m"),
        node("Add", "m p", "y"),
    ]
    tensors = {
        "w": random(8, 8),
        "k": random(8, 4),
        "four": np.array(4),
        "zero": np.array(0),
    }
    inputs = [value("x", F, ["n", 8])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 4])], tensors))


def no_turns() -> onnx.ModelProto:
    """A Loop whose body isn't run."""
    body = graph(
        [node("MatMul", "s u", "sn"), node("Identity", "ci", "co")],
        [value("it", I64, []), value("ci", BOOL, []), value("s", F, ["n", 8])],
        [value("co", BOOL, []), value("sn", F, ["n", 8])],
    )
    nodes = [node("Loop", "trips true x", "f", body=body), node("MatMul", "f k", "y")]
    tensors = {
        "trips": np.array(0),
        "true": np.array(True),
        "u": random(8, 8),
        "k": random(8, 4),
    }
    inputs = [value("x", F, ["n", 8])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 4])], tensors))


def nothing_yet() -> onnx.ModelProto:
    """A tensor without values beside others, as a cache is at first."""
    nodes = [
        node("Slice", "x from to one", "empty"),
        node("Mul", "empty empty", "squared"),
        node("Concat", "squared x", "z", axis=1),
        node("MatMul", "z k", "y"),
    ]
    tensors = {
        "from": np.array([0]),
        "to": np.array([0]),
        "one": np.array([1]),
        "k": random(8, 4),
    }
    inputs = [value("x", F, ["n", 8])]
    return model(graph(nodes, inputs, [value("y", F, ["n", 4])], tensors))


@pytest.mark.parametrize("kind", [H, BF])
@pytest.mark.parametrize("make", [sequences, no_turns, nothing_yet], ids=lambda m: m.__name__)
def test_what_inference_or_data_do_not_reach_stays_in_fp32(
    make: Callable[[], onnx.ModelProto], kind: int, tmp_path: Path
) -> None:
    wide = upgraded(make(), casting.BF16_OPSET)
    x = {"x": noise(4, 8)}
    chosen = choosing.choose(wide, measured(wide, [x], tmp_path), kind, DataKind.CALIBRATION)
    typed = casting.typed(wide, chosen.types)
    check.check_model(typed)
    assert chosen.why
    assert kind in shapes.types_of(typed).values()
    expected, actual = (
        OrtModel(made.SerializeToString(), optimisation="none").run(x)["y"]
        for made in (wide, rounded_model(typed))
    )
    np.testing.assert_allclose(actual, expected, atol=0.03 * np.abs(expected).max())


def test_a_loops_magnitudes_are_those_of_all_turns(tmp_path: Path) -> None:
    body = graph(
        [node("Mul", "s ten", "sn"), node("Identity", "ci", "co")],
        [value("it", I64, []), value("ci", BOOL, []), value("s", F, ["n"])],
        [value("co", BOOL, []), value("sn", F, ["n"])],
    )
    nodes = [node("Loop", "trips true x", "y", body=body)]
    tensors = {"trips": np.array(3), "true": np.array(True), "ten": np.float32(10)}
    made = model(graph(nodes, [value("x", F, ["n"])], [value("y", F, ["n"])], tensors))
    found = measured(normalised(made), [{"x": np.float32([1, 2])}], tmp_path)
    assert (found["sn"].most, found["sn"].least) == (2000, 10)
    assert found["s"].most == 200


# What fp16 can't hold


@pytest.mark.parametrize("summed", [False, True])
def test_a_norm_of_pixels_is_right_in_fp16_and_in_the_remainder_of_int8(
    summed: bool, tmp_path: Path
) -> None:
    samples = {"x": pixels()}
    built = build(tmp_path, norm(summed), samples, ["fp16", "int8"], ["sm_75", "sm_89"])
    all_right(built, 0.999)
    facts = built["fp16", "sm_89"].results["cast"].facts
    assert facts["data"] == "calibration"
    assert facts["kept_in_fp32"]["its values leave the range"] >= 3
    assert facts["low_precision_nodes"] > facts["float_nodes"] / 2
    remainder = built["int8", "sm_89"].results["calibrate"].facts["remainder_nodes"]
    assert remainder["fp32"] >= 3
    assert remainder["fp16"] > remainder["fp32"]


def test_fp16_is_right_on_pixels_though_its_types_were_chosen_on_noise(tmp_path: Path) -> None:
    wide = normalised(norm())
    seen = [{"x": np.random.default_rng(0).uniform(-1, 1, (8, 3, 32, 32)).astype(np.float32)}]
    chosen = choosing.choose(wide, measured(wide, seen, tmp_path), H, DataKind.RANDOM)
    rounded = rounded_model(casting.typed(wide, chosen.types))
    expected, actual = (
        OrtModel(made.SerializeToString(), optimisation="none").run({"x": pixels()})["y"]
        for made in (wide, rounded)
    )
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())
    products = [n for n in wide.graph.node if n.op_type in ("Conv", "MatMul")]
    assert all(chosen.types.get(n.output[0]) == H for n in products)


def test_weights_of_bodies_are_counted() -> None:
    assert walk.parameter_count(branches()) == 16 * 32 + 2 * 32 * 32 + 32 * 8 + 1


def test_a_norm_of_pixels_is_right_in_fp16_on_the_cpu(tmp_path: Path) -> None:
    all_right(build(tmp_path, norm(), {"x": pixels()}, ["fp16"], ["cpu"]), 0.999)


def choose(
    made: onnx.ModelProto,
    folder: Path,
    kind: int = H,
    data: DataKind = DataKind.CALIBRATION,
    **arrays: np.ndarray,
) -> dict[str, str]:
    """Output → why its operator stays in fp32."""
    wide = normalised(made)
    return dict(choosing.choose(wide, measured(wide, [arrays], folder), kind, data).why)


def between(nodes: Sequence[onnx.NodeProto], **tensors: object) -> onnx.ModelProto:
    given = {name: np.asarray(array) for name, array in tensors.items()}
    inputs, outputs = [value("x", F, ["n", 4096])], [value("y", F, None)]
    return model(graph(nodes, inputs, outputs, given))


def test_a_sum_stays_in_fp32_whose_terms_leave_the_range_though_their_mean_fits(
    tmp_path: Path,
) -> None:
    made = between([node("ReduceMean", "x last", "y")], last=np.array([-1]))
    assert choose(made, tmp_path, x=np.full((2, 4096), 2, np.float32)) == {}
    assert "range" in choose(made, tmp_path, x=np.full((2, 4096), 9, np.float32))["y"]


def test_an_epsilon_that_fp16_rounds_to_zero_stays_until_the_division(tmp_path: Path) -> None:
    nodes = [
        node("ReduceL2", "x last", "length"),
        node("Clip", "length eps", "held"),
        node("Expand", "held shape", "wide"),
        node("Div", "x wide", "y"),
    ]
    made = between(nodes, last=[-1], eps=np.float32(1e-12), shape=np.array([1, 4096]))
    kept = choose(made, tmp_path, x=noise(2, 4096))
    assert {"held", "wide", "y"} <= set(kept)


def test_the_argument_of_a_sine_keeps_its_small_parts_in_bf16_too(tmp_path: Path) -> None:
    nodes = [node("Mul", "x step", "angle"), node("Cos", "angle", "y")]
    made = between(nodes, step=np.float32(0.7))
    for kind in (H, BF):
        kept = choose(made, tmp_path, kind, x=np.arange(8192, dtype=np.float32).reshape(2, -1))
        assert set(kept) == {"angle", "y"}
    assert choose(made, tmp_path, x=noise(2, 4096) / 8) == {}


def test_there_is_room_for_other_data_than_those_at_hand(tmp_path: Path) -> None:
    made = between([node("Mul", "x up", "y")], up=np.float32(100))
    data = np.zeros((2, 4096), np.float32)
    data[0, 0] = 100
    assert choose(made, tmp_path, x=data) == {}
    data[0, 0] = 400  # 40,000 fits, and twice as much doesn't
    assert "y" in choose(made, tmp_path, x=data)
    data[0, 0] = 10  # of noise nothing follows for pixels
    assert "y" in choose(made, tmp_path, data=DataKind.RANDOM, x=data)


def test_bf16_is_named_where_it_serves_and_fp16_does_not(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "y")]
    tensors = {"w": random(16, 8) * 1e5}
    made = model(graph(nodes, [value("x", F, ["n", 16])], [value("y", F, ["n", 8])], tensors))
    built = build(tmp_path, made, {"x": noise(32, 16)}, ["fp16", "bf16"], ["sm_89"])
    error = built["fp16", "sm_89"].error
    assert isinstance(error, CastFailed)
    assert "choose bf16" in (error.hint or "")
    assert built["bf16", "sm_89"].error is None
    assert built["bf16", "sm_89"].accuracy["cosine_min"] > 0.999


def test_a_product_that_leaves_fp16_is_bf16_in_the_remainder_where_the_gpu_has_it(
    tmp_path: Path,
) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Relu", "a", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "f"),
        node("Mul", "f up", "large"),
        node("MatMul", "large t", "z"),
        node("MatMul", "z k", "large_y"),
        node("Mul", "large_y down", "y"),
    ]
    tensors = {
        "w": random(16, 3, 3, 3),
        "t": random(16, 1),
        "k": random(1, 8),
        "up": np.float32(1e6),
        "down": np.float32(1e-6),
    }
    inputs = [value("x", F, ["n", 3, 8, 8])]
    made = model(graph(nodes, inputs, [value("y", F, ["n", 8])], tensors))
    built = build(tmp_path, made, {"x": noise(32, 3, 8, 8)}, ["int8"], ["sm_75", "sm_89"])
    assert built["int8", "sm_89"].error is None
    assert built["int8", "sm_89"].accuracy["cosine_min"] > 0.99
    facts = built["int8", "sm_89"].results["calibrate"].facts
    assert facts["remainder_nodes"]["bf16"] >= 1


# Sources of other types


def detector(dtype: type) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        node("Conv", "x w b", "a", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "a", "r"),
        node("Conv", "r v", "e", pads=[1] * 4),
        node("Relu", "e", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Flatten", "p", "f"),
        node("MatMul", "f k", "y"),
    ]
    tensors = {
        "w": random(16, 3, 3, 3),
        "b": random(16),
        "v": random(32, 16, 3, 3),
        "k": random(32, 8),
    }
    inputs = [value("x", kind, ["n", 3, 16, 16])]
    given = {name: array.astype(dtype) for name, array in tensors.items()}
    return model(graph(nodes, inputs, [value("y", kind, ["n", 8])], given))


@pytest.mark.heavy
def test_a_source_of_fp16_keeps_its_types_and_can_be_cast_and_calibrated(tmp_path: Path) -> None:
    samples = {"x": noise(32, 3, 16, 16, dtype=np.float16)}
    precisions = ["fp32", "fp16", "int8"]
    built = build(tmp_path, detector(np.float16), samples, precisions, ["sm_89"])
    built |= build(tmp_path, detector(np.float16), samples, ["fp16"], ["sm_75"])
    all_right(built, 0.995)
    assert built["fp32", "sm_89"].facts["float_types"] == ["float16"]
    cast = built["fp16", "sm_89"].results["cast"].facts
    assert cast["own_types"] == ["float16"]
    for one in built.values():
        assert one.facts["compute"]["types"].get("fp32") is None
        assert one.facts["inputs"][0]["dtype"] == "float16"
    all_right(build(tmp_path, detector(np.float16), samples, precisions[:2], ["cpu"]), 0.999)
    all_right(build(tmp_path, detector(np.float16), samples, ["bf16"], ["sm_89"]), 0.999)


@pytest.mark.heavy
def test_an_onnx_source_of_bf16_can_be_built_cast_and_calibrated(tmp_path: Path) -> None:
    import ml_dtypes

    made = detector(ml_dtypes.bfloat16)
    samples = {"x": noise(32, 3, 16, 16)}  # NumPy has no bf16: fp32, rounded where it is run
    built = build(tmp_path, made, samples, ["fp32", "fp16", "int8"], ["cpu", "sm_89"])
    all_right({key: one for key, one in built.items() if key != ("int8", "cpu")}, 0.995)
    assert built["fp32", "cpu"].facts["narrowed"] == ["bfloat16"]
    assert built["fp32", "sm_89"].facts["float_types"] == ["bfloat16"]
    assert set(built["fp16", "sm_89"].facts["compute"]["types"]) == {"fp16"}


@pytest.mark.heavy
def test_a_program_of_bf16_can_be_built_and_cast(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    x = torch.randn(2, 16).bfloat16()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        module.eval().bfloat16(), (x,), dynamic_shapes={"input": {0: batch}}
    )
    path = tmp_path / "half.pt2"
    torch.export.save(program, path)
    built = build(tmp_path, path, {"input": noise(32, 16)}, ["fp32", "fp16"], ["cpu", "sm_89"])
    all_right(built, 0.999)
    assert built["fp32", "sm_89"].facts["float_types"] == ["bfloat16"]


def doubles() -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "r"), node("MatMul", "r k", "y")]
    tensors = {"w": random(16, 64).astype(np.float64), "k": random(64, 8).astype(np.float64)}
    inputs = [value("x", D, ["n", 16])]
    return model(graph(nodes, inputs, [value("y", D, ["n", 8])], tensors))


@pytest.mark.heavy
def test_fp64_is_exact_on_the_cpu_and_narrowed_with_a_note_for_gpus(tmp_path: Path) -> None:
    samples = {"x": noise(32, 16, dtype=np.float64)}
    built = build(tmp_path, doubles(), samples, ["fp32"], ["cpu", "sm_89"])
    all_right(built, 0.99999)
    assert built["fp32", "cpu"].accuracy["max_abs_error"] < 1e-12
    assert built["fp32", "cpu"].facts["narrowed"] == []
    gpu = built["fp32", "sm_89"].facts
    assert gpu["narrowed"] == ["float64"]
    assert [spec["dtype"] for spec in (*gpu["inputs"], *gpu["outputs"])] == ["float32"] * 2
    all_right(build(tmp_path, doubles(), samples, ["fp16"], ["cpu", "sm_75", "sm_89"]), 0.999)
    all_right(build(tmp_path, doubles(), samples, ["int8"], ["sm_75"]), 0.99)


@pytest.mark.heavy
def test_one_constant_of_fp64_is_no_reason_to_refuse_a_cast(tmp_path: Path) -> None:
    half = node("Constant", "", "half", value=numpy_helper.from_array(np.float64(0.5)))
    half.ClearField("input")
    nodes = [
        half,
        node("Cast", "x", "xd", to=D),
        node("Mul", "xd half", "xs"),
        node("Cast", "xs", "xf", to=F),
        node("MatMul", "xf w", "y"),
    ]
    inputs, outputs = [value("x", F, ["n", 16])], [value("y", F, ["n", 8])]
    made = model(graph(nodes, inputs, outputs, {"w": random(16, 8)}))
    built = build(tmp_path, made, {"x": noise(32, 16)}, ["fp32", "fp16"], ["cpu", "sm_89"])
    all_right(built, 0.999)


def test_rounding_emulates_bodies_and_interfaces_of_half_types() -> None:
    made = detector(np.float16)
    rounded = rounded_model(made)
    assert [v.type.tensor_type.elem_type for v in rounded.graph.input] == [H]
    x = {"x": noise(4, 3, 16, 16, dtype=np.float16)}
    expected = OrtModel(made.SerializeToString(), optimisation="none").run(x)["y"]
    actual = OrtModel(rounded.SerializeToString(), optimisation="none").run(x)["y"]
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_turing_is_refused_bf16_and_fp32_products_in_bodies() -> None:
    with pytest.raises(EngineBuildFailed, match="fp32 on sm_75"):
        refuse_on_turing(normalised(branches_alone()), Precision.INT8)


def branches_alone() -> onnx.ModelProto:
    """The products of ``branches`` that stand in its If."""
    made = branches()
    nodes = [n for n in made.graph.node if n.op_type in ("ReduceMean", "Greater", "If")]
    relu = node("Relu", "x", "r")
    del made.graph.node[:]
    made.graph.node.extend([relu, *nodes])
    made.graph.input[0].CopyFrom(value("x", F, ["n", 32]))
    made.graph.output[0].CopyFrom(value("f", F, ["n", 32]))
    return made


# One normal form


def mlp() -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x w", "a", name="first"),
        node("Relu", "a", "r", name="relu"),
        node("MatMul", "r k", "y", name="second"),
    ]
    tensors = {"w": random(64, 64), "k": random(64, 10)}
    inputs, outputs = [value("x", F, ["n", 64])], [value("y", F, ["n", 10])]
    return model(graph(nodes, inputs, outputs, tensors))


def sparse() -> onnx.ModelProto:
    made = mlp()
    tensor = next(t for t in made.graph.initializer if t.name == "w")
    array = numpy_helper.to_array(tensor).copy()
    array[np.abs(array) < 0.1] = 0
    at = np.flatnonzero(array)
    values = numpy_helper.from_array(array.ravel()[at], "w")
    indices = numpy_helper.from_array(at.astype(np.int64), "at")
    made.graph.initializer.remove(tensor)
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [64, 64]))
    return made


def unsorted() -> onnx.ModelProto:
    made = mlp()
    nodes = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([nodes[2], nodes[0], nodes[1]])
    return made


def same_names() -> onnx.ModelProto:
    made = mlp()
    for each in made.graph.node:
        each.name = "op"
    return made


def constants() -> onnx.ModelProto:
    made = mlp()
    tensors = list(made.graph.initializer)
    del made.graph.initializer[:]
    for tensor in tensors:
        made.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    return made


def weight_given() -> onnx.ModelProto:
    made = mlp()
    made.graph.output.append(value("k", F, [64, 10]))
    return made


def unused_input() -> onnx.ModelProto:
    made = mlp()
    made.graph.input.append(value("unused", F, ["n", 3]))
    return made


ODD = (sparse, unsorted, same_names, constants, weight_given)


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_what_onnx_allows_is_brought_to_one_form_that_computes_the_same(
    make: Callable[[], onnx.ModelProto],
) -> None:
    made = make()
    normal = normalised(made)
    assert is_normal(normal)
    assert normalised(normal) is normal
    x = noise(4, 64)
    weights = {t.name: numpy_helper.to_array(t) for t in normalised(made).graph.initializer}
    expected = np.maximum(x @ weights["w"], 0) @ weights.get("k", weights.get("k__value"))
    found = OrtModel(normal.SerializeToString(), optimisation="none").run({"x": x})
    np.testing.assert_allclose(found["y"], expected, atol=1e-5)
    assert [v.name for v in normal.graph.output] == [v.name for v in made.graph.output]


@pytest.mark.parametrize("make", [*ODD, unused_input], ids=lambda make: make.__name__)
@pytest.mark.heavy
def test_what_onnx_allows_is_built_in_every_precision(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    made = make()
    samples = {"x": noise(64, 64)}
    if make is unused_input:
        samples["unused"] = noise(64, 3)
    all_right(build(tmp_path, made, samples, ["fp16", "int8"], ["sm_75", "sm_89"]), 0.99)
    all_right(build(tmp_path, made, samples, ["fp32", "fp16"], ["cpu"]), 0.999)


@pytest.mark.heavy
def test_an_output_that_is_an_input_is_built_for_cpus_and_refused_in_words_for_gpus(
    tmp_path: Path,
) -> None:
    made = mlp()
    made.graph.output.append(value("x", F, ["n", 64]))
    built = build(tmp_path, made, {"x": noise(64, 64)}, ["fp32", "fp16"], ["cpu", "sm_89"])
    all_right({key: one for key, one in built.items() if key[1] == "cpu"}, 0.999)
    for precision in ("fp32", "fp16"):
        error = built[precision, "sm_89"].error
        assert isinstance(error, EngineBuildFailed)
        assert "'x'" in error.detail


def test_float_types_are_told_the_most_frequent_first() -> None:
    assert floats.float_types(doubles()) == ["float64"]
    assert floats.float_types(mlp()) == ["float32"]
