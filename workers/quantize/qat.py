"""Graphs that arrive quantised: in training, or by another tool.

They already contain Q/DQ, so nothing is calibrated and they are int8 as they stand. TensorRT accepts
only symmetric int8; CPUs accept any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from farm.errors import CalibrationFailed, EngineBuildFailed
from farm.specs.precision import Precision
from workers.graphs import walk
from workers.quantize.stored_weights import fold_quantized_weights

_TYPES = {
    Precision.INT8: (TensorProto.INT8, TensorProto.UINT8),
    Precision.FP8: (TensorProto.FLOAT8E4M3FN,),
}
_NAMED = 3


def check(model: onnx.ModelProto, precision: Precision) -> None:
    """Refuse a quantised graph whose types aren't those of the requested precision.

    Raises:
        CalibrationFailed: names the types it has.
    """
    tensors = _constants(model)
    found = {_type_of(node, tensors) for node in _quantizing(model)} - {None, TensorProto.INT32}
    if found.isdisjoint(_TYPES[precision]):
        names = ", ".join(sorted(TensorProto.DataType.Name(one).lower() for one in found if one))
        other = next((one for one, types in _TYPES.items() if not found.isdisjoint(types)), None)
        raise CalibrationFailed(
            f"the graph is already quantised, in {names or 'an unknown type'}, but {precision} was requested",
            hint=f"submit it as {other}: it needs no calibration data"
            if other
            else "submit the model it was made from",
        )


def refuse_asymmetric(model: onnx.ModelProto) -> None:
    """Refuse what TensorRT doesn't support: unsigned integers, and zero points other than 0.

    Raises:
        EngineBuildFailed: names the first tensors.
    """
    wrong = list(dict.fromkeys(_asymmetric(model)))
    if not wrong:
        return
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    raise EngineBuildFailed(
        f"TensorRT requires symmetric int8, zero point 0: {'; '.join(wrong[:_NAMED])}{more}",
        hint="quantise activations symmetrically in int8 (in torch.ao: qscheme=per_tensor_symmetric, "
        "dtype=qint8) and export again, or build it for cpu, which supports it",
    )


def _asymmetric(model: onnx.ModelProto) -> Iterator[str]:
    tensors = _constants(model)
    casts = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Cast"}
    for node in _quantizing(model):
        # Not by the name of one of our casts, which no user has seen.
        name = casts.get(node.input[0], node.input[0])
        if _type_of(node, tensors) in (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT4):
            yield f"{name!r} is unsigned"
        zero = tensors.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if zero is not None and numpy_helper.to_array(zero).astype(np.float32).any():
            value = numpy_helper.to_array(zero).reshape(-1)[0]
            yield f"{name!r} has the zero point {value}"


def for_gpus(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in a form that TensorRT accepts: integer biases as the floats they stand for.

    Its dequantised int32 is an accumulator's, for which TensorRT has no operator.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    tensors = _constants(made)
    floats = {
        node.output[0]: _dequantized(node, tensors)
        for node in made.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in tensors
        and node.input[1] in tensors
        and tensors[node.input[0]].data_type == TensorProto.INT32
    }
    walk.drop_nodes(made.graph, lambda node: bool(node.output) and node.output[0] in floats)
    made.graph.initializer.extend(floats.values())
    fold_quantized_weights(made)
    return made


def _dequantized(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto:
    """Dequantise an int32: its zero point is 0, and a vector of scales runs along a bias."""
    values, scale = (numpy_helper.to_array(tensors[name]) for name in node.input[:2])
    return numpy_helper.from_array((values * scale).astype(scale.dtype), node.output[0])


def _quantizing(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return (node for node in walk.all_nodes(model.graph) if node.op_type in walk.QDQ_OPS)


def _type_of(node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> int | None:
    """The quantised type; None if only its producers show it."""
    names = [*node.input[2:3], *(node.input[:1] if node.op_type == "DequantizeLinear" else ())]
    known = (int(tensors[name].data_type) for name in names if name in tensors)
    declared = (int(a.i) for a in node.attribute if a.name == "output_dtype" and a.i)
    if node.op_type == "QuantizeLinear":
        return next(known, None) or next(declared, TensorProto.UINT8)
    return next(known, None)


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    made = (
        (node.output[0], attribute.t)
        for node in walk.all_nodes(model.graph)
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    )
    return {tensor.name: tensor for tensor in model.graph.initializer} | dict(made)
