"""Converts a graph and its bodies to a newer opset.

ONNX's converter leaves the bodies of If, Loop and Scan unchanged, which makes the model invalid. Each
body is therefore converted as a model of its own, with its captures as inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import onnx
import onnx.version_converter
from onnx import helper

from farm.errors import InvalidModel
from workers.graphs.check import brief
from workers.graphs.normal import captured, normalised
from workers.graphs.shapes import inferred_of, opset_of
from workers.graphs.walk import all_nodes, bodies

#: Captured constants of up to this many values may be axes or sizes, which the converter reads.
_SMALL = 1024

Values = Mapping[str, onnx.ValueInfoProto]
Tensors = Mapping[str, onnx.TensorProto]


def upgraded(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in normal form, with its operators converted to the given opset.

    Raises:
        InvalidModel: if the converter fails.
    """
    before = opset_of(model)
    if before >= opset:
        return normalised(model)
    given = normalised(model)
    try:
        made = onnx.version_converter.convert_version(given, opset)
        if any(True for node in all_nodes(made.graph) for _ in bodies(node)):
            found = inferred_of(given).graph
            _convert_bodies(made.graph, found, given, {}, {}, opset)
    except Exception as err:  # the native converter raises bare RuntimeErrors and worse
        raise InvalidModel(
            f"can't convert the model from opset {before} to {opset}: {brief(err)}",
            hint="export it with opset 20; the model itself may be valid",
        ) from err
    made.metadata_props.extend(given.metadata_props[len(made.metadata_props) :])
    return normalised(made)


def _convert_bodies(
    graph: onnx.GraphProto,
    found: onnx.GraphProto,
    model: onnx.ModelProto,
    values: Values,
    tensors: Tensors,
    opset: int,
) -> None:
    """Convert the bodies in a graph that has been converted.

    Parameters:
        found: the graph before conversion, with types and shapes inferred.
        values: of the enclosing graphs.
        tensors: the constants of the enclosing graphs.
    """
    values = dict(values) | {
        value.name: value for value in [*found.value_info, *found.output, *found.input]
    }
    tensors = dict(tensors) | {tensor.name: tensor for tensor in found.initializer}
    before = [body for node in found.node for body in bodies(node)]
    after = [body for node in graph.node for body in bodies(node)]
    for old, new in zip(before, after, strict=True):
        _convert_body(old, new, model, values, tensors, opset)
        _convert_bodies(new, old, model, values, tensors, opset)


def _convert_body(
    old: onnx.GraphProto,
    new: onnx.GraphProto,
    model: onnx.ModelProto,
    values: Values,
    tensors: Tensors,
    opset: int,
) -> None:
    alone = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    alone.opset_import.extend(model.opset_import)
    alone.graph.CopyFrom(old)
    taken = sorted(captured(old))
    for name in taken:
        tensor = tensors.get(name)
        if tensor is not None and prod(tensor.dims) <= _SMALL:
            alone.graph.initializer.append(tensor)
        elif tensor is not None:
            alone.graph.input.append(
                helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
            )
        elif name in values:
            alone.graph.input.append(values[name])
    made = onnx.version_converter.convert_version(alone, opset).graph
    for field in (made.input, made.initializer):
        for index in reversed(range(len(field))):
            if field[index].name in taken:
                del field[index]
    new.CopyFrom(made)
    # The converter numbers its own names from the start in each body.
    new.name = old.name
