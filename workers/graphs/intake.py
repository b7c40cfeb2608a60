"""Brings ONNX from the wild into the form the stages expect, without changing what it computes."""

from __future__ import annotations

from collections.abc import Container
from math import prod

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference
from onnx import helper, numpy_helper

from farm.errors import InvalidModel
from farm.specs.shapes import ANONYMOUS
from workers.graphs.files import MAX_PROTO_BYTES
from workers.graphs.functions import refuse_costly
from workers.graphs.interface import axis_of
from workers.graphs.normal import normalised
from workers.graphs.shapes import inferred_of, outline_of
from workers.graphs.walk import drop, drop_nodes, drop_unused

EXPORT_AGAIN = "export the model again and check that the upload is complete"


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without functions; the model itself if it has none.

    Raises:
        InvalidModel: functions call themselves, or one another too deep, or are too many operators.
    """
    if not model.functions:
        return model
    refuse_costly(model)
    try:
        return onnx.inliner.inline_local_functions(model)
    except onnx.checker.ValidationError as err:
        raise InvalidModel(
            f"the model's functions can't be written out: {str(err)[:300]}", hint=EXPORT_AGAIN
        ) from err


def described(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in normal form, without functions, with dynamic axes named and output shapes declared.

    Each anonymous axis gets its own name: two of them are unrelated, and calibration rejects unnamed
    axes. Declared shapes that contradict those inferred from the inputs are dropped. Returns the model
    itself if nothing has to change.
    """
    model = _without_stale_shapes(normalised(inlined(model)))
    unshaped = [v.name for v in model.graph.output if not v.type.tensor_type.HasField("shape")]
    anonymous = [
        (value.name, axis)
        for value in model.graph.input
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if axis_of(dim) == ANONYMOUS
    ]
    if not unshaped and not anonymous:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if unshaped:
        _shape_outputs(result)
    inputs = {value.name: value for value in result.graph.input}
    for name, axis in anonymous:
        inputs[name].type.tensor_type.shape.dim[axis].dim_param = f"{name}_{axis}"
    return result


def _without_stale_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop stale shapes: editing only an input's batch size leaves inner shapes with the old one. No
    runtime trusts them, and neither does the farm."""
    bare = outline_of(model)
    stated = {v.name: v for v in [*model.graph.value_info, *model.graph.output]}
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        made = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        return model  # the check reports what is wrong with it
    sizes = {
        str(axis_of(dim)) for v in model.graph.input for dim in v.type.tensor_type.shape.dim
    } - {ANONYMOUS}
    found = {value.name: value for value in [*made.value_info, *made.output]}
    stale = [
        name
        for name, value in stated.items()
        if name in found and _contradicts(value, found[name], sizes)
    ]
    if not stale:
        return model
    print(f"dropped stale shapes of {', '.join(stale[:5])}", flush=True)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    for value in result.graph.output:
        if value.name in stale:
            value.CopyFrom(found[value.name])
    return result


def _contradicts(
    stated: onnx.ValueInfoProto, found: onnx.ValueInfoProto, sizes: Container[str]
) -> bool:
    """Whether a declared shape differs from the inferred one, or fixes a size that an input decides."""
    shapes = [value.type.tensor_type for value in (stated, found)]
    if not all(shape.HasField("shape") for shape in shapes):
        return False
    left, right = ([axis_of(dim) for dim in shape.shape.dim] for shape in shapes)
    if len(left) != len(right):
        return True
    return any(
        isinstance(said, int) and said != is_ and (isinstance(is_, int) or is_ in sizes)
        for said, is_ in zip(left, right, strict=True)
    )


def _shape_outputs(model: onnx.ModelProto) -> None:
    made = inferred_of(model, data_prop=True).graph.output
    for value, found in zip(model.graph.output, made, strict=True):
        value.CopyFrom(found)


def is_modern(model: onnx.ModelProto) -> bool:
    """Whether weights are initializers only, as ``modernised`` makes them."""
    given = {tensor.name for tensor in model.graph.initializer}
    return (
        model.ir_version >= _ir_version(model)
        and not any(value.name in given for value in model.graph.input)
        and not any(_is_filled(node, given) for node in model.graph.node)
    )


def modernised(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in normal form, in its operators' IR version, with weights as initializers only.

    Before IR version 4 they also had to be inputs. Weights filled in by a ConstantOfShape are stored
    in full: otherwise nothing quantises them.
    """
    modern = onnx.ModelProto()
    modern.CopyFrom(normalised(model))
    graph = modern.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    drop(graph.input, lambda value: value.name in tensors)
    filled = [node for node in graph.node if _is_filled(node, tensors)]
    for node in filled:
        value = next((numpy_helper.to_array(a.t) for a in node.attribute), np.zeros(1, np.float32))
        shape = [int(size) for size in numpy_helper.to_array(tensors[node.input[0]])]
        if prod(shape) * value.itemsize > MAX_PROTO_BYTES or min(shape, default=0) < 0:
            raise InvalidModel(
                f"{node.output[0]!r} would be filled with {shape} values", hint=EXPORT_AGAIN
            )
        weights = np.full(shape, value[0], value.dtype)
        graph.initializer.append(numpy_helper.from_array(weights, node.output[0]))
    drop_nodes(graph, lambda node: _is_filled(node, tensors))
    drop_unused(graph)
    modern.ir_version = max(modern.ir_version, _ir_version(modern))
    return modern


def _ir_version(model: onnx.ModelProto) -> int:
    """The first IR version that has the model's operators."""
    return int(helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True))


def _is_filled(node: onnx.NodeProto, constants: Container[str]) -> bool:
    return node.op_type == "ConstantOfShape" and node.input[0] in constants
