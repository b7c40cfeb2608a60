"""The floating-point types of a graph, and its conversion to fp32 alone.

Everything that chooses types starts from fp32: a graph of fp16, bf16, fp64 or a mix of them is first
widened (or narrowed) to it; its inputs and outputs keep their types.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workers.graphs.shapes import types_of
from workers.graphs.walk import all_nodes, drop, graphs_of

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
#: The types the farm handles, by their names in NumPy and PyTorch.
NAMES = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
#: Attributes that hold a type.
_TYPE_ATTRIBUTES = (
    "to",
    "dtype",
    "output_dtype",
    "output_datatype",
    "stash_type",
    "softmax_precision",
)
_OTHERS = (*HALVES, TensorProto.DOUBLE)


def float_types(model: onnx.ModelProto) -> list[str]:
    """The floating-point types of a graph's tensors, most frequent first."""
    kinds = [NAMES[kind] for kind in types_of(model).values() if kind in NAMES]
    return sorted(set(kinds), key=lambda name: (-kinds.count(name), name))


def has_type(model: onnx.ModelProto, *kinds: int) -> bool:
    """Whether any tensor of the graph, its bodies or its interface has one of these types."""
    return not set(kinds).isdisjoint(types_of(model).values())


def in_fp32(model: onnx.ModelProto, *, kinds: Collection[int] = _OTHERS) -> onnx.ModelProto:
    """A copy of the graph with fp32 in place of these types; inputs and outputs keep their types.

    Returns the model itself if it has none of these types. The model must be in normal form.
    """
    return widened(model, kinds=kinds)[0] if has_type(model, *kinds) else model


def calibratable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Like ``in_fp32``, with no bf16 in the interface: neither NumPy nor the calibrators know it."""
    if has_type(model, TensorProto.BFLOAT16):
        model = narrowed(model, kinds=(TensorProto.BFLOAT16,))
    return in_fp32(model)


def widened(
    model: onnx.ModelProto, *, kinds: Collection[int]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Like ``in_fp32``, and also maps each retyped input and output to its inner name."""
    result = narrowed(model, kinds=kinds)
    before = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.output)
    }
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [v for v in result.graph.input if before[v.name] in kinds and v.name not in given]
    outputs = [v for v in result.graph.output if before[v.name] in kinds]
    names = _Names(result)
    inside = {v.name: names.new(f"{v.name}__fp32") for v in (*inputs, *outputs)}
    for graph in graphs_of(result):
        for node in graph.node:
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    field[index] = inside.get(name, name)
    through = {value.name for value in inputs}
    made = onnx.GraphProto()
    made.node.extend(names.cast(v.name, inside[v.name], TensorProto.FLOAT) for v in inputs)
    made.node.extend(result.graph.node)
    made.node.extend(
        names.cast(inside[v.name], v.name, before[v.name]) for v in outputs if v.name not in through
    )
    for value in (*inputs, *outputs):
        value.type.tensor_type.elem_type = before[value.name]
    del result.graph.node[:]
    result.graph.node.extend(made.node)
    return result, inside


class _Names:
    """Generates names unused in a model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._used = {node.name for node in all_nodes(model.graph)}
        self._used |= {name for node in all_nodes(model.graph) for name in node.output}

    def new(self, name: str) -> str:
        made, number = name, 1
        while made in self._used:
            number += 1
            made = f"{name}_{number}"
        self._used.add(made)
        return made

    def cast(self, given: str, made: str, kind: int) -> onnx.NodeProto:
        name = self.new(f"{made}__cast")
        return helper.make_node("Cast", [given], [made], name=name, to=kind)


def narrowed(
    model: onnx.ModelProto, *, kinds: Collection[int] = (TensorProto.DOUBLE,)
) -> onnx.ModelProto:
    """A copy of the graph with fp32 in place of these types, inputs and outputs included."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for graph in graphs_of(result):
        # Types of inner values are inferred again; a body's own inputs and outputs are declared.
        drop(graph.value_info, lambda value: value.type.HasField("tensor_type"))
        for value in (*graph.input, *graph.output, *graph.value_info):
            _retype(value.type, kinds)
        for tensor in graph.initializer:
            _widen(tensor, kinds)
    for node in all_nodes(result.graph):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t, kinds)
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in kinds:
                attribute.i = TensorProto.FLOAT
    return result


def _retype(kind: onnx.TypeProto, kinds: Collection[int]) -> None:
    if kind.HasField("tensor_type") and kind.tensor_type.elem_type in kinds:
        kind.tensor_type.elem_type = TensorProto.FLOAT
    for holder in ("sequence_type", "optional_type"):
        if kind.HasField(holder):
            _retype(getattr(kind, holder).elem_type, kinds)


def _widen(tensor: onnx.TensorProto, kinds: Collection[int]) -> None:
    if tensor.data_type in kinds:
        tensor.CopyFrom(of_type(tensor, TensorProto.FLOAT, tensor.name))


def of_type(tensor: onnx.TensorProto, kind: int, name: str) -> onnx.TensorProto:
    """A constant converted to another floating-point type; values out of range become its largest."""
    value = numpy_helper.to_array(tensor).astype(np.float64)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    most = _MOST[kind]
    finite = np.where(np.isfinite(value), np.clip(value, -most, most), value)
    return numpy_helper.from_array(finite.astype(dtype), name)


_MOST: dict[int, float] = {
    TensorProto.FLOAT: float(np.finfo(np.float32).max),
    TensorProto.FLOAT16: 65504.0,
    TensorProto.BFLOAT16: 3.3895314e38,
    TensorProto.DOUBLE: float(np.finfo(np.float64).max),
}


def largest_of(kind: int) -> float:
    """The largest finite value of a floating-point type."""
    return _MOST[kind]
