"""Bodies of control flow are typed, measured and right, as what is around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from farm.errors import EngineBuildFailed
from farm.specs.precision import Precision
from farm.specs.source import DataKind
from tests.typed_graphs import (
    BF,
    BOOL,
    I64,
    F,
    H,
    all_right,
    branches,
    build,
    graph,
    model,
    node,
    noise,
    random,
    turns,
    value,
)
from workers.backends.ort.cpu import OrtModel
from workers.graphs import casting, check, shapes, walk
from workers.graphs.intake import described
from workers.graphs.normal import normalised
from workers.graphs.opsets import upgraded
from workers.graphs.rounding import rounded_model
from workers.quantize import choosing
from workers.quantize.magnitudes import measured
from workers.stages.build.refusals import refuse_on_turing


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
        [node("Mul", "s ten", "sn"), node("Identity", "ci", "co"), node("Reciprocal", "sn", "q")],
        [value("it", I64, []), value("ci", BOOL, []), value("s", F, ["n"])],
        [value("co", BOOL, []), value("sn", F, ["n"]), value("q", F, ["n"])],
    )
    nodes = [node("Loop", "trips true x", "y qs", body=body)]
    tensors = {"trips": np.array(3), "true": np.array(True), "ten": np.float32(10)}
    outputs = [value("y", F, ["n"]), value("qs", F, ["t", "n"])]
    made = model(graph(nodes, [value("x", F, ["n"])], outputs, tensors))
    found = measured(normalised(made), [{"x": np.float32([1, 2])}], tmp_path)
    assert (found["sn"].most, found["sn"].least) == (2000, 10)
    assert found["s"].most == 200


def test_weights_of_bodies_are_counted() -> None:
    assert walk.parameter_count(branches()) == 16 * 32 + 2 * 32 * 32 + 32 * 8 + 1


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
