"""A graph's inputs and outputs, and the ranges of their axes."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.shape_inference
from onnx import helper
from pydantic import TypeAdapter, ValidationError

from farm.errors import InvalidModel
from farm.reports.records import Tensor, first_of
from farm.specs.shapes import ANONYMOUS, TensorSpec
from workers.graphs.files import EXPORT_AGAIN
from workers.graphs.walk import drop
from workers.inputs.profiles import AxisRange, AxisRanges

_RANGES_KEY = "engine-farm.axis-ranges"


_RANGES = TypeAdapter(dict[str, AxisRange])


def input_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs a caller must supply: those without an initializer as default."""
    given = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in given)


def every_input(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs a caller may supply, including those with a default."""
    return tuple(_spec(value) for value in model.graph.input)


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in model.graph.output)


def axis_of(dim: Any) -> int | str:
    """A static axis's size or a dynamic one's name; a negative size means dynamic."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or ANONYMOUS


def axis_ranges(model: onnx.ModelProto) -> dict[str, AxisRange]:
    """The ranges of dynamic axes given by the model's source, as stored by ``keep_axis_ranges``."""
    written = {entry.key: entry.value for entry in model.metadata_props}.get(_RANGES_KEY, "{}")
    try:
        return _RANGES.validate_json(written)
    except ValidationError as err:
        raise InvalidModel(
            f"the model's metadata {_RANGES_KEY} aren't ranges of axes", hint=EXPORT_AGAIN
        ) from err


def keep_axis_ranges(model: onnx.ModelProto, ranges: AxisRanges) -> None:
    """Store the ranges in the model's metadata for later stages."""
    drop(model.metadata_props, lambda entry: entry.key == _RANGES_KEY)
    if ranges:
        text = _RANGES.dump_json(dict(ranges)).decode()
        model.metadata_props.add(key=_RANGES_KEY, value=text)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    check_is_tensor(value)
    if not tensor.HasField("shape"):
        raise InvalidModel(
            f"the rank of {value.name!r} is unknown",
            hint="export the model with the shapes of its inputs and outputs",
        )
    shape = tuple(axis_of(dim) for dim in tensor.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def check_is_tensor(value: onnx.ValueInfoProto) -> None:
    """Check an input or output.

    Raises:
        InvalidModel: it isn't a tensor, or its names or number of axes are beyond what the farm keeps.
    """
    if not value.type.HasField("tensor_type"):
        raise InvalidModel(
            f"{value.name!r} isn't a tensor",
            hint="use only plain tensors as the model's inputs and outputs",
        )
    shape = [axis_of(dim) for dim in value.type.tensor_type.shape.dim]
    try:
        Tensor(name=value.name, dtype="", shape=shape)
    except ValidationError as err:
        raise InvalidModel(
            f"an input or output, {value.name[:100]!r}, can't be kept: {first_of(err)}",
            hint="give inputs, outputs and axes shorter names",
        ) from err
