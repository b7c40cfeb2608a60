"""Half-precision graphs on a CPU: computed in fp32, with each result rounded to the half type.

ONNX Runtime's CPU kernels lack bf16, and run fp16 graphs in fp32 without rounding between operators,
which hides overflows. Here each half-typed result is cast to its type and back, as a GPU stores it;
sums inside an operator stay fp32, as in a GPU's tensor cores.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from workers.graphs.floats import HALVES, has_type, widened
from workers.graphs.normal import normalised
from workers.graphs.shapes import types_of
from workers.graphs.walk import bodies


def is_half_typed(model: onnx.ModelProto) -> bool:
    """Whether anything in the graph, its bodies or its interface is fp16 or bf16."""
    return has_type(model, *HALVES)


def rounded_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in fp32, rounding wherever the original stores fp16 or bf16.

    Bodies of control flow round too. fp16 inputs and outputs keep their type; bf16 ones, which NumPy
    lacks, become rounded fp32.
    """
    model = normalised(model)
    wide, inside = widened(model, kinds=HALVES)
    types = types_of(model)
    halves = {inside.get(name, name): kind for name, kind in types.items() if kind in HALVES}
    _round(wide.graph, halves)
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return wide


def _round(graph: onnx.GraphProto, halves: Mapping[str, int]) -> None:
    made = onnx.GraphProto()
    for node in graph.node:
        for body in bodies(node):
            _round(body, halves)
        made.node.append(node)
        after = made.node[-1]
        if after.op_type == "Cast":
            for attribute in after.attribute:  # of an output's cast: inside there are none
                if attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                    attribute.i = TensorProto.FLOAT
        for index, name in enumerate(node.output):
            if half := halves.get(name):
                after.output[index] = f"{name}__wide"
                made.node.append(_cast(f"{name}__wide", f"{name}__half", half))
                made.node.append(_cast(f"{name}__half", name, TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(made.node)


def _cast(given: str, made: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [given], [made], to=kind)
