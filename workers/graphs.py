"""ONNX graphs: reading, checking, and describing their inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx.shape_inference
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper
from pydantic import TypeAdapter, ValidationError

from farm.errors import InvalidModel
from farm.specs import ANONYMOUS, TensorSpec
from workers.profiles import AxisRange, AxisRanges

#: Domains whose operators the farm's runtimes know.
STANDARD_DOMAINS = ("", "ai.onnx")
#: The first opset whose Q/DQ may have fp16 scales; older models are upgraded to it.
MIN_OPSET = 19
#: protobuf's limit for one message: beyond it the weights are kept beside the graph.
MAX_PROTO_BYTES = 2_000_000_000
QDQ_OPS = ("QuantizeLinear", "DequantizeLinear")
#: Constants of up to so many values may say a shape; larger ones are weights.
_SHAPE_VALUES = 64

_RANGES_KEY = "engine-farm.axis-ranges"
_RANGES = TypeAdapter(dict[str, AxisRange])
_EXPORT_AGAIN = "export the model again and check that the upload is whole"


def read_model(path: Path) -> onnx.ModelProto:
    """Read the ONNX model in ``path``.

    Raises:
        InvalidModel: if it is empty, damaged, or keeps its weights in other files.
    """
    if path.stat().st_size == 0:
        # Zero bytes are a valid protobuf message, and TensorRT parses them without a complaint.
        raise InvalidModel("the file is empty", hint="upload the model again")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as err:
        raise InvalidModel("the file isn't a readable ONNX model", hint=_EXPORT_AGAIN) from err
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise InvalidModel("the ONNX model has no graph", hint=_EXPORT_AGAIN)
    _refuse_external_data(model)
    return model


def check_model(model: onnx.ModelProto) -> None:
    """Check that a graph is valid and made of standard operators.

    Raises:
        InvalidModel: naming the operator and domain, or what the checker found.
    """
    opset = opset_of(model)
    for node in all_nodes(model.graph):
        _check_operator(node, opset)
    try:
        onnx.checker.check_model(model)
        onnx.shape_inference.infer_shapes(outline(model), strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise InvalidModel(
            f"the ONNX model is invalid: {brief(err)}",
            hint="run onnx.checker.check_model(model, full_check=True) on it and export it again",
        ) from err


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS]
    if not versions:
        raise InvalidModel("the ONNX model imports no standard opset", hint=_EXPORT_AGAIN)
    return int(max(versions))


def outline(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its weights as inputs, without their values.

    Types and shapes follow from it as well. Of the whole model they are inferred in seconds, since that
    copies all weights more than once.
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
    """The element type of every tensor of a graph, those of its subgraphs left out."""
    graph = onnx.shape_inference.infer_shapes(outline(model)).graph
    values = [*graph.value_info, *graph.output, *graph.input]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph, those of its subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for nested in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                yield from all_nodes(nested)


def input_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must give: initializers with a default aren't among them."""
    given = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in given)


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in model.graph.output)


def parameter_count(model: onnx.ModelProto) -> int:
    """The number of weights in the graph."""
    return sum(prod(tensor.dims) for tensor in model.graph.initializer)


def qdq_pairs(model: onnx.ModelProto) -> int:
    """The number of dequantised tensors: activations as Q/DQ pairs, weights as Q/DQ or DQ alone."""
    return sum(node.op_type == "DequantizeLinear" for node in all_nodes(model.graph))


def is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type in QDQ_OPS for node in all_nodes(model.graph))


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drop the initializers that nothing takes."""
    used = {name for node in all_nodes(graph) for name in node.input}
    used |= {value.name for value in graph.output}
    drop(graph.initializer, lambda tensor: tensor.name not in used)


def drop_nodes(graph: onnx.GraphProto, is_dropped: Callable[[onnx.NodeProto], bool]) -> None:
    """Drop the nodes of which this is true, those of subgraphs kept."""
    drop(graph.node, is_dropped)


def drop(field: Any, is_dropped: Callable[[Any], bool]) -> None:
    """Drop some messages of a repeated field; to write it anew would copy the others."""
    for index in reversed(range(len(field))):
        if is_dropped(field[index]):
            del field[index]


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, with its weights in the same file.

    Raises:
        InvalidModel: when it is larger than one protobuf message may be.
    """
    size = model.ByteSize()
    if size > MAX_PROTO_BYTES:
        raise InvalidModel(
            f"the ONNX model is {size / 1e9:.1f} GB, and one file holds 2 GB",
            hint="choose fp16, or split the model",
        )
    onnx.save(model, str(path))


def specs_as_json(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
    return [spec.model_dump(mode="json") for spec in specs]


def axis_of(dim: Any) -> int | str:
    """A static axis's size, or a dynamic one's name; a negative size says that it is dynamic."""
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or ANONYMOUS


def axis_ranges(model: onnx.ModelProto) -> dict[str, AxisRange]:
    """What the model's source says of its dynamic axes, as ``keep_axis_ranges`` wrote it down."""
    written = {entry.key: entry.value for entry in model.metadata_props}.get(_RANGES_KEY, "{}")
    try:
        return _RANGES.validate_json(written)
    except ValidationError as err:
        raise InvalidModel(
            f"the model's metadata {_RANGES_KEY} aren't ranges of axes", hint=_EXPORT_AGAIN
        ) from err


def keep_axis_ranges(model: onnx.ModelProto, ranges: AxisRanges) -> None:
    """Write them into the model's metadata, for the stages after this one."""
    drop(model.metadata_props, lambda entry: entry.key == _RANGES_KEY)
    if ranges:
        text = _RANGES.dump_json(dict(ranges)).decode()
        model.metadata_props.add(key=_RANGES_KEY, value=text)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise InvalidModel(
            f"{value.name!r} isn't a tensor",
            hint="give the model plain tensors as inputs and outputs",
        )
    if not tensor.HasField("shape"):
        raise InvalidModel(
            f"the rank of {value.name!r} isn't known",
            hint="export the model with the shapes of its inputs and outputs",
        )
    shape = tuple(axis_of(dim) for dim in tensor.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def _check_operator(node: onnx.NodeProto, opset: int) -> None:
    if node.domain not in STANDARD_DOMAINS:
        raise InvalidModel(
            f"operator {node.op_type} of domain {node.domain!r} isn't a standard ONNX operator",
            hint="rewrite it with standard operators and export again: nothing could check its engine",
        )
    try:
        onnx.defs.get_schema(node.op_type, max_inclusive_version=opset, domain="")
    except onnx.defs.SchemaError as err:
        raise InvalidModel(
            f"operator {node.op_type} doesn't exist in ONNX opset {opset}",
            hint="check its spelling, or export with a newer opset",
        ) from err


def _refuse_external_data(model: onnx.ModelProto) -> None:
    # Its locations are paths: following them would read whatever the author wished.
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InvalidModel(
                f"the weight {tensor.name!r} lies in another file, which wasn't handed in",
                hint="save it in one file: onnx.save(model, path, save_as_external_data=False)",
            )


def brief(err: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(err).__name__
