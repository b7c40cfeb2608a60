"""Products in bodies of control flow, in functions, and of the operators that are made of products."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from workers.graphs.compute import compute_of

F, H, I64, B = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
info = helper.make_tensor_value_info
node = helper.make_node


def weight(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def constant(name, value):
    return numpy_helper.from_array(np.array(value), name)


def model(nodes, inputs, outputs, tensors=(), *, opset=20, functions=()):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(tensors))
    opsets = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(f.domain, 1) for f in functions),
    ]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def found(made, **shapes):
    return [(p.name, p.type, p.macs) for p in compute_of(made, shapes).products]


def gemm_of(name, hidden, kind=F, dtype=np.float32):
    """A branch that multiplies the tensor h of the graph around it."""
    nodes = [node("Gemm", ["h", f"w_{name}"], [f"y_{name}"], name=f"/{name}/gemm")]
    weights = [weight(f"w_{name}", hidden, 8, dtype=dtype)]
    return helper.make_graph(nodes, name, [], [info(f"y_{name}", kind, ["n", 8])], weights)


def test_the_products_of_both_branches_count_with_their_own_types():
    branches = {"then_branch": gemm_of("then", 16), "else_branch": gemm_of("else", 16)}
    made = model(
        [
            node("Cast", ["x"], ["half"], to=H),
            node("MatMul", ["half", "w"], ["hh"], name="/outside"),
            node("Cast", ["hh"], ["h"], to=F),
            node("If", ["c"], ["y"], name="/if", **branches),
        ],
        [info("x", F, ["n", 4]), info("c", B, [])],
        [info("y", F, ["n", 8])],
        [weight("w", 4, 16, dtype=np.float16)],
    )
    assert sorted(found(made, x=(3, 4), c=())) == [
        ("/else/gemm", "fp32", 3 * 16 * 8),
        ("/outside", "fp16", 3 * 4 * 16),
        ("/then/gemm", "fp32", 3 * 16 * 8),
    ]


def loop(condition, *, trips=constant("trips", 5), more=()):
    """A state that is multiplied in each round, and a condition that the body hands on."""
    body = helper.make_graph(
        [node("MatMul", ["state", "w"], ["next"], name="/loop/mm"), condition],
        "body",
        [info("round", I64, []), info("go", B, []), info("state", F, ["n", 4])],
        [info("on", B, []), info("next", F, ["n", 4])],
        [weight("w", 4, 4)],
    )
    nodes = [*more, node("Loop", ["trips", "true", "x"], ["y"], body=body)]
    inputs = [info("x", F, ["n", 4])] + ([] if trips else [info("trips", I64, [])])
    tensors = [constant("true", True), *([trips] if trips else [])]
    return model(nodes, inputs, [info("y", F, ["n", 4])], tensors)


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    once = 3 * 4 * 4
    assert found(loop(node("Identity", ["go"], ["on"])), x=(3, 4)) == [
        ("/loop/mm", "fp32", 5 * once)
    ]
    always = node("Constant", [], ["on"], value=helper.make_tensor("v", B, [], [True]))
    assert found(loop(always), x=(3, 4))[0][2] == 5 * once


def test_a_loop_that_may_end_earlier_or_later_has_a_product_and_no_number():
    not_always = node("Greater", ["round", "round"], ["on"])
    assert found(loop(not_always), x=(3, 4)) == [("/loop/mm", "fp32", None)]
    unknown = loop(node("Identity", ["go"], ["on"]), trips=None)
    assert found(unknown, x=(3, 4), trips=()) == [("/loop/mm", "fp32", None)]
    assert compute_of(unknown, {"x": (3, 4), "trips": ()}).as_facts() == {
        "macs": None,
        "types": {"fp32": {"layers": 1, "share": None}},
    }


def test_the_body_of_a_scan_counts_once_a_step():
    body = helper.make_graph(
        [node("MatMul", ["row", "w"], ["out"], name="/scan/mm")],
        "body",
        [info("row", F, [2, 4])],
        [info("out", F, [2, 8])],
        [weight("w", 4, 8)],
    )
    made = model(
        [node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)],
        [info("x", F, ["t", 2, 4])],
        [info("y", F, ["t", 2, 8])],
    )
    assert found(made, x=(7, 2, 4)) == [("/scan/mm", "fp32", 7 * 2 * 4 * 8)]


def test_products_in_functions_of_the_model_count():
    double = helper.make_function(
        "own",
        "Twice",
        ["a", "b"],
        ["c"],
        [node("MatMul", ["a", "b"], ["m"]), node("MatMul", ["m", "b"], ["c"])],
        [helper.make_opsetid("", 20)],
    )
    made = model(
        [node("Twice", ["x", "w"], ["y"], domain="own")],
        [info("x", F, ["n", 4])],
        [info("y", F, ["n", 4])],
        [weight("w", 4, 4)],
        functions=[double],
    )
    assert [one[1:] for one in found(made, x=(3, 4))] == [("fp32", 48), ("fp32", 48)]


def test_attention_counts_both_of_its_products_and_what_lies_in_the_cache():
    names = [f"{name}" for name in ("q", "k", "v")]
    made = model(
        [node("Attention", names, ["y"], name="/a")],
        [info(name, H, [2, 4, "t", 8]) for name in names],
        [info("y", H, [2, 4, "t", 8])],
        opset=23,
    )
    shape = (2, 4, 5, 8)
    assert found(made, q=shape, k=shape, v=shape) == [("/a", "fp16", 2 * 4 * 5 * 5 * (8 + 8))]

    cached = model(
        [node("Attention", [*names, "", "pk", "pv"], ["y", "nk", "nv"], name="/a")],
        [info(name, H, [2, 4, None, 8]) for name in (*names, "pk", "pv")],
        [info("y", H, [2, 4, None, 8]), *(info(n, H, [2, 4, None, 8]) for n in ("nk", "nv"))],
        opset=23,
    )
    one = (2, 4, 1, 8)
    shapes = {"q": one, "k": one, "v": one, "pk": (2, 4, 9, 8), "pv": (2, 4, 9, 8)}
    assert found(cached, **shapes)[0][2] == 2 * 4 * 1 * 10 * 16


def test_attention_of_three_axes_has_its_heads_in_its_attributes():
    # 4 heads of 8 for queries, 2 for keys and values of 6: 4·8 and 4·6 multiplications a pair.
    made = model(
        [node("Attention", ["q", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=2, name="/a")],
        [info("q", F, [1, 5, 32]), info("k", F, [1, 7, 16]), info("v", F, [1, 7, 12])],
        [info("y", F, [1, 5, 24])],
        opset=23,
    )
    shapes = {"q": (1, 5, 32), "k": (1, 7, 16), "v": (1, 7, 12)}
    assert found(made, **shapes) == [("/a", "fp32", 5 * 7 * (32 + 24))]


@pytest.mark.parametrize(
    ("equation", "a", "b", "y", "macs"),
    [
        ("bij,bjk->bik", (2, 3, 4), (2, 4, 5), (2, 3, 5), 2 * 3 * 4 * 5),
        ("...ij, ...jk -> ...ik", (2, 3, 4), (1, 4, 5), (2, 3, 5), 2 * 3 * 4 * 5),
        ("ij,jk", (3, 4), (4, 5), (3, 5), 3 * 4 * 5),
    ],
)
def test_an_einsum_that_adds_up_is_a_product(equation, a, b, y, macs):
    made = model(
        [node("Einsum", ["a", "b"], ["y"], equation=equation)],
        [info("a", F, a), info("b", F, b)],
        [info("y", F, y)],
    )
    assert found(made, a=a, b=b) == [("y", "fp32", macs)]


@pytest.mark.parametrize("equation", ["ij,ij->ij", "i,j->ij"])
def test_an_einsum_that_adds_nothing_up_is_none(equation):
    shape = (3, 4) if equation.startswith("ij") else (3,)
    made = model(
        [node("Einsum", ["a", "b"], ["y"], equation=equation)],
        [info("a", F, shape), info("b", F, shape if len(shape) > 1 else (4,))],
        [info("y", F, (3, 4))],
    )
    assert found(made, a=shape, b=shape if len(shape) > 1 else (4,)) == []


def test_a_recurrent_layer_multiplies_at_every_step():
    made = model(
        [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=16, name="/lstm")],
        [info("x", F, ["t", "n", "features"])],
        [info("y", F, ["t", 1, "n", 16])],
        [weight("w", 1, 64, 8), weight("r", 1, 64, 16)],
    )
    assert found(made, x=(10, 3, 8)) == [("/lstm", "fp32", 10 * 3 * 64 * (8 + 16))]
    # The last size may be lost on the way: the weights say it too.
    assert found(made, x=(10, 3)) == [("/lstm", "fp32", 10 * 3 * 64 * (8 + 16))]


def test_operators_of_other_domains_are_no_products():
    made = model(
        [node("Attention", ["x", "w"], ["y"], domain="com.microsoft", num_heads=2)],
        [info("x", F, [1, 4, 8])],
        [info("y", F, [1, 4, 8])],
        [weight("w", 8, 24)],
    )
    made.opset_import.add(domain="com.microsoft", version=1)
    assert found(made, x=(1, 4, 8)) == []


def test_operators_that_take_integers_compute_in_them():
    tensors = [
        weight("w", 4, 8, dtype=np.int8),
        constant("s", np.float32(0.1)),
        constant("z", np.int8(0)),
    ]
    made = model(
        [node("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"], name="/q")],
        [info("x", TensorProto.INT8, ["n", 4])],
        [info("y", TensorProto.INT8, ["n", 8])],
        tensors,
    )
    assert found(made, x=(3, 4)) == [("/q", "int8", 3 * 4 * 8)]
