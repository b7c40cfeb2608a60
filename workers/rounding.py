"""Half-precision graphs on a CPU: computed in fp32, with every result rounded to the half type.

ONNX Runtime's CPU kernels know no bf16, and compute fp16 graphs in fp32 without rounding between
operators, which hides overflows. Here each half-typed result is cast to its type and back, as a GPU
stores it; like a GPU's tensor cores, the sums inside an operator are fp32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workers import graphs

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def is_half_typed(model: onnx.ModelProto) -> bool:
    """Whether anything in the graph is fp16 or bf16."""
    graph = model.graph
    if any(tensor.data_type in _HALF for tensor in graph.initializer):
        return True
    return any(_cast_type(node) in _HALF for node in graph.node)


def rounded_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in fp32, rounding where the original stores fp16 or bf16.

    Subgraphs are left as they are. The graph's inputs and outputs must be fp32.
    """
    types = graphs.types_of(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        if tensor.data_type in _HALF:
            tensor.CopyFrom(_as_float(tensor))
    nodes: list[onnx.NodeProto] = []
    for node in list(graph.node):
        nodes += _rounded(node, types)
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _rounded(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in _HALF:
            attribute.t.CopyFrom(_as_float(attribute.t))
        if attribute.name in ("to", "output_dtype") and attribute.i in _HALF:
            attribute.i = TensorProto.FLOAT
    nodes = [node]
    for index, name in enumerate(node.output):
        half = types.get(name)
        if half not in _HALF or node.op_type == "Constant":
            continue
        node.output[index] = f"{name}__wide"
        nodes += [
            helper.make_node("Cast", [f"{name}__wide"], [f"{name}__half"], to=half),
            helper.make_node("Cast", [f"{name}__half"], [name], to=TensorProto.FLOAT),
        ]
    return nodes


def _as_float(tensor: onnx.TensorProto) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor).astype(np.float32)
    return numpy_helper.from_array(array, tensor.name)


def _cast_type(node: onnx.NodeProto) -> int:
    if node.op_type != "Cast":
        return int(TensorProto.UNDEFINED)
    return next((int(a.i) for a in node.attribute if a.name == "to"), int(TensorProto.UNDEFINED))
