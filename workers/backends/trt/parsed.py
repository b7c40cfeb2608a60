"""Compares how TensorRT's parser read a model with what the model says.

A parser that misreads an attribute silently builds a wrong engine: those of TensorRT 10.13 to 11.1 read
each GridSample of opset 20 and later as ``nearest``. So attributes that parsers have misread, or could, are
read back from the network and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx

from farm.errors import EngineBuildFailed
from workers.backends.trt.inspector import operators_of

if TYPE_CHECKING:
    import tensorrt as types

#: The model's name for a mode → TensorRT's. GridSample's names changed with opset 20.
_INTERPOLATION = {
    "nearest": "NEAREST",
    "bilinear": "LINEAR",
    "linear": "LINEAR",
    "bicubic": "CUBIC",
    "cubic": "CUBIC",
}
_PADDING = {"zeros": "FILL", "border": "CLAMP", "reflection": "REFLECT"}
_COORDINATES = {
    "half_pixel": "HALF_PIXEL",
    "pytorch_half_pixel": "HALF_PIXEL",
    "align_corners": "ALIGN_CORNERS",
    "asymmetric": "ASYMMETRIC",
}
_ROUNDING = {
    "round_prefer_floor": "HALF_DOWN",
    "round_prefer_ceil": "HALF_UP",
    "floor": "FLOOR",
    "ceil": "CEIL",
}


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """An operator's attribute, and where TensorRT's layer has it."""

    name: str
    default: str | int
    layer_name: str
    meanings: Mapping[Any, object]  #: model's value → layer's; other values aren't compared
    only: tuple[str, str] | None = (
        None  #: another attribute and the value for which this one applies
    )


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator whose attributes are compared, from an opset onwards."""

    op_type: str
    opset: int
    layer_type: str
    layer_class: str
    attributes: tuple[Attribute, ...]


#: To compare another operator, add it here, with TensorRT's correct reading of each value.
COMPARED = (
    Operator(
        op_type="GridSample",
        opset=16,
        layer_type="GRID_SAMPLE",
        layer_class="IGridSampleLayer",
        attributes=(
            Attribute(
                name="mode",
                default="linear",
                layer_name="interpolation_mode",
                meanings=_INTERPOLATION,
            ),
            Attribute(
                name="padding_mode", default="zeros", layer_name="sample_mode", meanings=_PADDING
            ),
            Attribute(
                name="align_corners",
                default=0,
                layer_name="align_corners",
                meanings={0: False, 1: True},
            ),
        ),
    ),
    Operator(
        op_type="Resize",
        opset=11,
        layer_type="RESIZE",
        layer_class="IResizeLayer",
        attributes=(
            Attribute(
                name="mode", default="nearest", layer_name="resize_mode", meanings=_INTERPOLATION
            ),
            Attribute(
                name="coordinate_transformation_mode",
                default="half_pixel",
                layer_name="coordinate_transformation",
                meanings=_COORDINATES,
            ),
            Attribute(
                name="nearest_mode",
                default="round_prefer_floor",
                layer_name="nearest_rounding",
                meanings=_ROUNDING,
                only=("mode", "nearest"),
            ),
        ),
    ),
)
_DOMAINS = ("", "ai.onnx")
_NAMED = 3


def check_attributes(trt: Any, network: types.INetworkDefinition, model: onnx.ModelProto) -> None:
    """Compare the parsed network's attributes with the model's.

    Raises:
        EngineBuildFailed: names the first nodes that were misread.
    """
    wrong = list(_misread(trt, network, model))
    if not wrong:
        return
    more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    raise EngineBuildFailed(
        f"{trt.__name__} {trt.__version__} misreads the model: {'; '.join(wrong[:_NAMED])}{more}",
        hint="its engine would be wrong: build for tensorrt-rtx or with another TensorRT version, or "
        "export the model with an older opset (19 for GridSample)",
    )


def _misread(trt: Any, network: types.INetworkDefinition, model: onnx.ModelProto) -> Iterator[str]:
    opset = max((one.version for one in model.opset_import if one.domain in _DOMAINS), default=0)
    operators = {one.op_type: one for one in COMPARED if opset >= one.opset}
    nodes = {
        node.name or f"node_of_{node.output[0]}": node
        for node in model.graph.node
        if node.domain in _DOMAINS and node.op_type in operators
    }
    if not nodes:
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for name in operators_of(layer.metadata):
            if name in nodes:
                yield from _differences(trt, layer, nodes[name], operators[nodes[name].op_type])


def _differences(
    trt: Any, layer: types.ILayer, node: onnx.NodeProto, operator: Operator
) -> Iterator[str]:
    if str(layer.type).rpartition(".")[2] != operator.layer_type:
        return  # another layer of the node: shapes, casts
    # The network returns layers as the base class; TensorRT's own tools narrow them like this.
    layer.__class__ = getattr(trt, operator.layer_class)
    given = {one.name: _value(one) for one in node.attribute}
    defaults = {one.name: one.default for one in operator.attributes}
    for one in operator.attributes:
        if one.only and given.get(one.only[0], defaults[one.only[0]]) != one.only[1]:
            continue
        says = given.get(one.name, one.default)
        expected = one.meanings.get(says)
        read = getattr(layer, one.layer_name)
        understood = getattr(read, "name", read)
        if expected is not None and understood != expected:
            yield (
                f"{node.op_type} {node.name or node.output[0]!r} has {one.name} {says}, but its layer "
                f"{one.layer_name} {understood}"
            )


def _value(attribute: onnx.AttributeProto) -> str | int:
    if attribute.type == onnx.AttributeProto.STRING:
        return str(attribute.s.decode(errors="replace"))
    return int(attribute.i)
