"""ONNX graphs: reading, checking, and describing their inputs and outputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any
from uuid import uuid4

import onnx
import onnx.shape_inference
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper
from pydantic import TypeAdapter, ValidationError

from farm.errors import InvalidModel
from farm.formats import packs
from farm.formats.onnx_files import MalformedModel, external_files, location
from farm.formats.sources import PACK_HINT, model_in_pack
from farm.specs.shapes import ANONYMOUS, TensorSpec
from workers.inputs.profiles import AxisRange, AxisRanges

#: Domains whose operators the farm's runtimes know.
STANDARD_DOMAINS = ("", "ai.onnx")
#: That of ONNX Runtime's own operators, which no other runtime has.
ONNXRUNTIME_DOMAIN = "com.microsoft"
#: The first opset whose Q/DQ may have fp16 scales; older models are upgraded to it.
MIN_OPSET = 19
#: protobuf's limit for one message: beyond it the weights are kept beside the graph.
MAX_PROTO_BYTES = 2_000_000_000
#: Tensors of so many numbers, shapes for example, are always in the graph itself.
_SMALL_TENSOR = 1024
QDQ_OPS = ("QuantizeLinear", "DequantizeLinear")
#: Constants of up to so many values may say a shape; larger ones are weights.
_SHAPE_VALUES = 64

_RANGES_KEY = "engine-farm.axis-ranges"
_RANGES = TypeAdapter(dict[str, AxisRange])
_EXPORT_AGAIN = "export the model again and check that the upload is whole"


def read_model(path: Path, folder: Path) -> tuple[Path, onnx.ModelProto]:
    """The ONNX model in ``path``: the file to hand to a runtime, and its graph.

    Of a pack the model lies below ``folder``, unpacked, and its large weights stay in their files.

    Raises:
        InvalidModel: if it is empty, damaged, or keeps weights in files that aren't in the pack.
    """
    if path.stat().st_size == 0:
        # Zero bytes are a valid protobuf message, and TensorRT parses them without a complaint.
        raise InvalidModel("the file is empty", hint="upload the model again")
    file = _unpacked(path, folder) if packs.is_pack(path) else path
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError) as err:
        raise InvalidModel("the file isn't a readable ONNX model", hint=_EXPORT_AGAIN) from err
    if file is path:
        _refuse_external_data(path)
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise InvalidModel("the ONNX model has no graph", hint=_EXPORT_AGAIN)
    # Both, one after the other.
    if _plain_locations(model) | _take_in_small_tensors(model, file.parent):
        onnx.save(model, str(file))
    return file, model


def model_file(path: Path, folder: Path) -> Path:
    """The file to hand to a runtime of a model that a stage has written.

    Raises:
        InvalidModel: of a pack, as ``read_model``.
    """
    return read_model(path, folder)[0] if packs.is_pack(path) else path


def _plain_locations(model: onnx.ModelProto) -> bool:
    """Runtimes differ in what they take for a path. Returns whether one was written in another way."""
    changed = False
    for tensor in external_data_helper._get_all_tensors(model):
        for entry in tensor.external_data if is_external(tensor) else ():
            if entry.key == "location" and entry.value != location(entry.value):
                entry.value, changed = location(entry.value), True
    return changed


def _take_in_small_tensors(model: onnx.ModelProto, folder: Path) -> bool:
    """Without the values of shapes and axes no runtime infers shapes. Returns whether there were any."""
    tensors = [t for t in tensors_of(model) if is_external(t)]
    small = [tensor for tensor in tensors if prod(tensor.dims) <= _SMALL_TENSOR]
    for tensor in small:
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return bool(small)


def _unpacked(path: Path, folder: Path) -> Path:
    """The model of a pack, unpacked; nothing but the pack's files is ever read for it."""
    target = folder / f"unpacked-{uuid4().hex[:8]}"
    try:
        model = target / model_in_pack(path)
        packs.unpack(path, target)
        names = external_files(model)
    except (packs.MalformedPack, MalformedModel) as err:
        raise InvalidModel(f"the archive is no model: {err}", hint=_EXPORT_AGAIN) from err
    for name in names:
        _check_location(model.parent / location(name), target)
    return model


def _refuse_external_data(path: Path) -> None:
    # Its locations are paths: following them would read whatever the author wished.
    names = external_files(path)
    if names:
        raise InvalidModel(
            f"the model keeps weights in {min(names)!r}, which wasn't handed in with it",
            hint=PACK_HINT,
        )


def _check_location(file: Path, folder: Path) -> None:
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise InvalidModel(
            f"the model keeps weights in {file.name!r}, which wasn't handed in with it",
            hint=PACK_HINT,
        )


def load_weights(model: onnx.ModelProto, file: Path) -> None:
    """Bring the weights that the model of this file keeps elsewhere into it."""
    external_data_helper.load_external_data_for_model(model, str(file.parent))


def is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def inferred(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """The outline of a graph with types and shapes inferred."""
    result: onnx.ModelProto = onnx.shape_inference.infer_shapes(outline(model), **options)
    return result


def check_model(model: onnx.ModelProto) -> None:
    """Check that a graph is valid and made of standard operators, or of ONNX Runtime's.

    Raises:
        InvalidModel: naming the operator and domain, or what the checker found.
    """
    opset = opset_of(model)
    for node in all_nodes(model.graph):
        _check_operator(node, opset)
    for value in (*model.graph.input, *model.graph.output):
        _check_is_tensor(value)
    try:
        _check_proto(model)
        inferred(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise InvalidModel(
            f"the ONNX model is invalid: {brief(err)}",
            hint="run onnx.checker.check_model(model, full_check=True) on it and export it again",
        ) from err


def _check_proto(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(outline(model) if is_large(model) else model)


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
    """The element type of every tensor of a graph and of its bodies; 0 of what isn't a tensor.

    Names must mean one tensor each, as they do in normal form.
    """
    return _types_in(inferred(model).graph)


def _types_in(graph: onnx.GraphProto) -> dict[str, int]:
    types: dict[str, int] = {}
    for node in graph.node:
        for body in bodies(node):
            types |= _types_in(body)
    for value in [*graph.value_info, *graph.output, *graph.input]:
        types[value.name] = value.type.tensor_type.elem_type or types.get(value.name, 0)
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph, those of its subgraphs too."""
    for node in graph.node:
        yield node
        for nested in bodies(node):
            yield from all_nodes(nested)


def graphs_of(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph of a model, and every body in it after the graph that holds it."""
    yield model.graph
    for node in all_nodes(model.graph):
        yield from bodies(node)


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The initializers of a model, those of its bodies too."""
    for graph in graphs_of(model):
        yield from graph.initializer


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a node runs: branches of an If, the body of a Loop or a Scan."""
    return [
        body
        for attribute in node.attribute
        for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs)
    ]


def input_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must give: initializers with a default aren't among them."""
    given = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in given)


def every_input(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs that a caller may give, those with a default too."""
    return tuple(_spec(value) for value in model.graph.input)


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    return tuple(_spec(value) for value in model.graph.output)


def parameter_count(model: onnx.ModelProto) -> int:
    """The number of weights in the graph."""
    return sum(prod(tensor.dims) for tensor in tensors_of(model))


def qdq_pairs(model: onnx.ModelProto) -> int:
    """The number of dequantised tensors: activations as Q/DQ pairs, weights as Q/DQ or DQ alone."""
    return sum(node.op_type == "DequantizeLinear" for node in all_nodes(model.graph))


def own_operators(model: onnx.ModelProto) -> list[str]:
    """The kinds of operators in the graph that ONNX Runtime alone has."""
    nodes = all_nodes(model.graph)
    return sorted({node.op_type for node in nodes if node.domain == ONNXRUNTIME_DOMAIN})


def is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type in QDQ_OPS for node in all_nodes(model.graph))


def take_out_given(model: onnx.ModelProto) -> dict[int, onnx.ValueInfoProto]:
    """Take the outputs that are inputs out of a model, and return them by their positions.

    They are legal, and few tools know them.
    """
    given = {value.name for value in model.graph.input}
    taken = {at: v for at, v in enumerate(model.graph.output) if v.name in given}
    copies = {at: onnx.ValueInfoProto.FromString(v.SerializeToString()) for at, v in taken.items()}
    drop(model.graph.output, lambda value: value.name in given)
    return copies


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drop the initializers that nothing takes."""
    used = {name for node in all_nodes(graph) for name in node.input}
    used |= {value.name for value in graph.output}
    drop(graph.initializer, lambda tensor: tensor.name not in used)
    for node in graph.node:
        for body in bodies(node):
            drop_unused(body)


def drop_nodes(graph: onnx.GraphProto, is_dropped: Callable[[onnx.NodeProto], bool]) -> None:
    """Drop the nodes of which this is true, those of subgraphs kept."""
    drop(graph.node, is_dropped)


def drop(field: Any, is_dropped: Callable[[Any], bool]) -> None:
    """Drop some messages of a repeated field; to write it anew would copy the others."""
    for index in reversed(range(len(field))):
        if is_dropped(field[index]):
            del field[index]


def weight_bytes(model: onnx.ModelProto) -> int:
    """The size of the weights, wherever they are."""
    return sum(
        prod(tensor.dims) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
        for tensor in tensors_of(model)
    )


def is_large(model: onnx.ModelProto) -> bool:
    """Whether it is more than one protobuf message may hold, or has weights in other files."""
    return weight_bytes(model) > MAX_PROTO_BYTES or any(map(is_external, tensors_of(model)))


def write_model(model: onnx.ModelProto, file: Path) -> None:
    """Write a model for a runtime, a large one with its weights beside it.

    The weights of a large one leave ``model``.
    """
    onnx.save(
        model,
        str(file),
        save_as_external_data=is_large(model),
        location=f"{file.name}.data",
        size_threshold=8 * _SMALL_TENSOR,
    )


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file, a large one as a pack."""
    folder = path.with_name(f"{path.name}.files")
    folder.mkdir()
    write_model(model, folder / "model.onnx")
    load_weights(model, folder / "model.onnx")
    as_one_file(folder, model, path)


def as_one_file(folder: Path, model: onnx.ModelProto, path: Path) -> None:
    """Make one file of a model that was written to ``model.onnx`` in a folder, and remove the folder.

    Parameters:
        model: what was written, its weights where they were written to.
    """
    files = {file.name: file for file in folder.iterdir()}
    if len(files) > 1 and weight_bytes(model) <= MAX_PROTO_BYTES:
        load_weights(model, folder / "model.onnx")
        onnx.save(model, str(path))
    elif len(files) > 1:
        packs.Pack(name=path.name, files=files).write(path)
    else:
        files["model.onnx"].rename(path)
    shutil.rmtree(folder)


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
    _check_is_tensor(value)
    if not tensor.HasField("shape"):
        raise InvalidModel(
            f"the rank of {value.name!r} isn't known",
            hint="export the model with the shapes of its inputs and outputs",
        )
    shape = tuple(axis_of(dim) for dim in tensor.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


def _check_is_tensor(value: onnx.ValueInfoProto) -> None:
    if not value.type.HasField("tensor_type"):
        raise InvalidModel(
            f"{value.name!r} isn't a tensor",
            hint="give the model plain tensors as inputs and outputs",
        )


def _check_operator(node: onnx.NodeProto, opset: int) -> None:
    if node.domain == ONNXRUNTIME_DOMAIN:
        return  # its session knows them, and there is one for every graph
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


def brief(err: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return " ".join(lines)[:400] or type(err).__name__
