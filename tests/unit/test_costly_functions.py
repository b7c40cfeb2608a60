"""Functions that no inliner should be given."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from farm.errors import InvalidModel
from workers.graphs.functions import MAX_OPERATORS
from workers.graphs.intake import inlined

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]


def function(name: str, *calls: str) -> onnx.FunctionProto:
    """a → b, by calling others one after the other; without any by a Relu."""
    names = ["a", *(f"m{number}" for number in range(1, len(calls))), "b"]
    nodes = [
        helper.make_node(called, [names[at]], [names[at + 1]], domain="own")
        for at, called in enumerate(calls)
    ]
    return helper.make_function(
        "own", name, ["a"], ["b"], nodes or [helper.make_node("Relu", ["a"], ["b"])], OPSETS
    )


def model(*functions: onnx.FunctionProto, inside: bool = False) -> onnx.ModelProto:
    """x → y by the first function, at once or in the branches of an If."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    call = helper.make_node("F0", ["x"], ["y"], domain="own")
    if inside:
        branch = helper.make_graph([call], "branch", [], [y])
        call = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    graph = helper.make_graph([call], "g", [x], [y], [condition])
    return helper.make_model(graph, opset_imports=OPSETS, functions=list(functions), ir_version=9)


@pytest.mark.parametrize(
    "functions",
    [[function("F0", "F0")], [function("F0", "F1"), function("F1", "F2"), function("F2", "F1")]],
)
def test_functions_that_call_themselves_are_the_models_fault(functions):
    with pytest.raises(InvalidModel, match="call themselves: 'F"):
        inlined(model(*functions))


@pytest.mark.parametrize("inside", [False, True])
def test_functions_that_double_forty_times_are_refused_before_they_are_written_out(inside):
    twice = [function(f"F{n}", f"F{n + 1}", f"F{n + 1}") for n in range(40)]
    with pytest.raises(InvalidModel, match=f"more than {MAX_OPERATORS:,} operators"):
        inlined(model(*twice, function("F40"), inside=inside))


@pytest.mark.parametrize("inside", [False, True])
def test_functions_of_functions_are_written_out(inside):
    made = inlined(
        model(function("F0", "F1", "F1"), function("F1", "F2", "F2"), function("F2"), inside=inside)
    )
    [graph] = [made.graph] if not inside else [made.graph.node[0].attribute[0].g]
    assert [node.op_type for node in graph.node] == ["Relu"] * 4
    assert not made.functions


@pytest.mark.parametrize(("count", "told"), [(90, None), (3000, "can't be written out: .*depth")])
def test_a_chain_of_functions_is_written_out_or_refused_with_the_inliners_reason(count, told):
    chain = [function(f"F{n}", f"F{n + 1}") for n in range(count)]
    deep = model(*chain, function(f"F{count}"))
    if told:
        with pytest.raises(InvalidModel, match=told):
            inlined(deep)
    else:
        assert [node.op_type for node in inlined(deep).graph.node] == ["Relu"]
