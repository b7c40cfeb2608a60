"""The activations that a Q/DQ graph quantises: which tensors, which of them share a scale, and new scales.

ModelOpt places Q/DQ. What it decides stays, but for the activations' scales.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from farm.specs.precision import Precision
from workers.graphs import walk
from workers.quantize.thresholds import LEVELS

#: Their range is known: ModelOpt takes 0 to 1 for a Softmax.
_KNOWN = ("Softmax",)
#: A smaller scale says that there were zeros alone, as far as data tell.
_LEAST = np.finfo(np.float32).tiny
#: Whose output is requantised for free where the inputs share its scale.
_JOINS = ("Concat",)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The activations of a Q/DQ graph whose scales come from data."""

    groups: tuple[tuple[str, ...], ...]  #: tensors that share a scale; most are alone

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group)


def placed(model: onnx.ModelProto) -> Placement:
    """What a graph quantises, as ModelOpt wrote it."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    of = scales_of(model)
    together = {name: name for name in of}

    def first(name: str) -> str:
        while together[name] != name:
            name = together[name]
        return name

    for node in graph.node:
        if node.op_type in _JOINS and node.output[0] in of:
            for name in (dequantized(each, makers) for each in node.input):
                # Equal to the bit, or ModelOpt didn't join them.
                if name in of and of[name] == of[node.output[0]]:
                    together[first(name)] = first(node.output[0])
    groups: dict[str, list[str]] = {}
    for name in of:
        groups.setdefault(first(name), []).append(name)
    return Placement(groups=tuple(map(tuple, groups.values())))


def scales_of(model: onnx.ModelProto) -> dict[str, float]:
    """The activations whose scales come from data → their scales, as written."""
    graph = model.graph
    scales = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    of: dict[str, float] = {}
    for node in graph.node:
        name = node.input[0] if node.op_type == "QuantizeLinear" else ""
        maker = makers.get(name)
        if (
            not name
            or name in scales
            or (maker is not None and maker.op_type in (*_KNOWN, "Constant"))
        ):
            continue
        if node.input[1] in scales and not scales[node.input[1]].dims:
            of[name] = float(numpy_helper.to_array(scales[node.input[1]]))
    return of


def dequantized(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """The activation behind a Q/DQ pair; the name itself without one."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        maker = makers.get(name)
        if maker is None or maker.op_type != kind:
            return name
        name = maker.input[0]
    return name


def without_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a Q/DQ graph that computes in floats what it computed before it was quantised."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    makers = {name: node for node in plain.graph.node for name in node.output}
    behind = {
        node.output[0]: dequantized(node.output[0], makers)
        for node in plain.graph.node
        if node.op_type == "DequantizeLinear"
    }
    for node in walk.all_nodes(plain.graph):
        for at, name in enumerate(node.input):
            node.input[at] = behind.get(name, name)
    walk.drop_nodes(plain.graph, lambda node: node.op_type in walk.QDQ_OPS)
    walk.drop_unused(plain.graph)
    return plain


def scale_of(threshold: float, precision: Precision) -> np.float32:
    """The scale by which this magnitude is the largest integer, to the bit as ModelOpt computes it."""
    wide = np.float64(np.float32(threshold)) * 2 / (2 * LEVELS)
    scale = np.float32(1) if wide < _LEAST else np.float32(wide)
    return np.float32(scale * 448.0 / 127.0) if precision is Precision.FP8 else scale


def largest_of(scale: float, precision: Precision) -> float:
    """The magnitude by which ``scale_of`` gives this scale."""
    return scale * LEVELS * (127.0 / 448.0 if precision is Precision.FP8 else 1.0)


def with_dequantized(model: onnx.ModelProto, largest: Mapping[str, float]) -> dict[str, float]:
    """Magnitudes of activations, and those that are left of them behind their Q/DQ pairs."""
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    found, behind = dict(largest), {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in largest:
            behind[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in behind:
            scale = float(numpy_helper.to_array(values[node.input[1]]))
            found[node.output[0]] = min(largest[behind[node.input[0]]], scale * (LEVELS + 1))
    return found


def with_scales_given(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of the graph that takes these activations' scales as inputs, by ``scale_name``."""
    given = onnx.ModelProto()
    given.CopyFrom(model)
    _renamed(given.graph, tensors)
    for name in tensors:
        value = helper.make_tensor_value_info(scale_name(name), TensorProto.FLOAT, [])
        given.graph.input.append(value)
    walk.drop_unused(given.graph)
    return given


def scale_name(tensor: str) -> str:
    return f"{tensor}__scale"


def rescale(model: onnx.ModelProto, scales: Mapping[str, np.float32]) -> None:
    """Give activations these scales, each tensor its own constant."""
    _renamed(model.graph, scales)
    for name, scale in scales.items():
        constant = numpy_helper.from_array(np.asarray(scale, np.float32), scale_name(name))
        model.graph.initializer.append(constant)
    walk.drop_unused(model.graph)


def _renamed(graph: onnx.GraphProto, tensors: Collection[str]) -> None:
    renamed: dict[str, str] = {}  #: quantised tensor → its scale
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in tensors:
            renamed[node.output[0]] = node.input[1] = scale_name(node.input[0])
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in renamed:
            node.input[1] = renamed[node.input[0]]
