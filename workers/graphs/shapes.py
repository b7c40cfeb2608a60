"""Inference of the types and shapes of a graph's values."""

from __future__ import annotations

from math import prod

import onnx
import onnx.shape_inference
from onnx import helper

from farm.errors import InvalidModel
from workers.graphs.files import EXPORT_AGAIN
from workers.graphs.standard import STANDARD_DOMAINS
from workers.graphs.walk import bodies

#: Constants of up to this many values may be shapes; larger ones are weights.
_SHAPE_VALUES = 64


def inferred_of(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """The outline of a graph with types and shapes inferred."""
    result: onnx.ModelProto = onnx.shape_inference.infer_shapes(outline_of(model), **options)
    return result


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if not versions:
        raise InvalidModel("the ONNX model imports no standard opset", hint=EXPORT_AGAIN)
    return int(max(versions))


def outline_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its weights as inputs, without their values.

    Types and shapes can be inferred from it just as well. From the whole model that takes seconds,
    since inference copies all weights more than once.
    """
    result = onnx.ModelProto(ir_version=model.ir_version)
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    graph = result.graph
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    given = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _SHAPE_VALUES:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return result


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor in a graph and its bodies; 0 for what isn't a tensor.

    Each name must mean one tensor, as in normal form.
    """
    return _types_in(inferred_of(model).graph)


def _types_in(graph: onnx.GraphProto) -> dict[str, int]:
    types: dict[str, int] = {}
    for node in graph.node:
        for body in bodies(node):
            types |= _types_in(body)
    for value in [*graph.value_info, *graph.output, *graph.input]:
        types[value.name] = value.type.tensor_type.elem_type or types.get(value.name, 0)
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
