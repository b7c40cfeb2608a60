"""Reads ONNX files as untrusted input, external data included, and writes them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from uuid import uuid4

import onnx
import onnx.shape_inference
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper

from farm.errors import InvalidModel
from farm.formats import packs
from farm.formats.onnx_files import external_files, location
from farm.formats.protobuf import MalformedMessage
from farm.formats.sources import PACK_HINT, model_in_pack
from workers.graphs.walk import tensors_of

#: protobuf's limit per message: above it the weights are stored beside the graph.
MAX_PROTO_BYTES = 2_000_000_000


#: Tensors of up to this many values, such as shapes, are always stored in the graph itself.
_SMALL_TENSOR = 1024


EXPORT_AGAIN = "export the model again and check that the upload is complete"


def read_model(path: Path, folder: Path) -> tuple[Path, onnx.ModelProto]:
    """Read the ONNX model in ``path``: returns the file for a runtime to load, and its graph.

    A pack is unpacked below ``folder``; its large weights stay in their files.

    Raises:
        InvalidModel: if the model is empty, damaged, or keeps weights in files missing from the pack.
    """
    if path.stat().st_size == 0:
        # Zero bytes are a valid protobuf message, and TensorRT parses them without complaint.
        raise InvalidModel("the file is empty", hint="upload the model again")
    file = _unpacked(path, folder) if packs.is_pack(path) else path
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError) as err:
        raise InvalidModel("the file isn't a readable ONNX model", hint=EXPORT_AGAIN) from err
    if file is path:
        _refuse_external_data(path)
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise InvalidModel("the ONNX model has no graph", hint=EXPORT_AGAIN)
    # ``|``, not ``or``: both must run.
    if _plain_locations(model) | _take_in_small_tensors(model, file.parent):
        onnx.save(model, str(file))
    return file, model


def model_file(path: Path, folder: Path) -> Path:
    """The file for a runtime to load, given a model that a stage has written.

    Raises:
        InvalidModel: for a pack, as in ``read_model``.
    """
    return read_model(path, folder)[0] if packs.is_pack(path) else path


def _plain_locations(model: onnx.ModelProto) -> bool:
    """Normalise the paths of external data: runtimes differ in the forms they accept. True if any changed."""
    changed = False
    for tensor in external_data_helper._get_all_tensors(model):
        for entry in tensor.external_data if is_external(tensor) else ():
            if entry.key == "location" and entry.value != location(entry.value):
                entry.value, changed = location(entry.value), True
    return changed


def _take_in_small_tensors(model: onnx.ModelProto, folder: Path) -> bool:
    """Load small external tensors: without the values of shapes and axes no runtime can infer shapes.

    Returns whether there were any.
    """
    tensors = [t for t in tensors_of(model) if is_external(t)]
    small = [tensor for tensor in tensors if prod(tensor.dims) <= _SMALL_TENSOR]
    for tensor in small:
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return bool(small)


def _unpacked(path: Path, folder: Path) -> Path:
    """Unpack a pack and return its model; only files of the pack are ever read for it."""
    target = folder / f"unpacked-{uuid4().hex[:8]}"
    try:
        model = target / model_in_pack(path)
        packs.unpack(path, target)
        names = external_files(model)
    except (packs.MalformedPack, MalformedMessage) as err:
        raise InvalidModel(f"the archive isn't a model: {err}", hint=EXPORT_AGAIN) from err
    for name in names:
        _check_location(model.parent / location(name), target)
    return model


def _refuse_external_data(path: Path) -> None:
    # Its locations are paths: following them would read whatever the author chose.
    names = external_files(path)
    if names:
        raise InvalidModel(
            f"the model keeps weights in {min(names)!r}, which wasn't submitted with it",
            hint=PACK_HINT,
        )


def _check_location(file: Path, folder: Path) -> None:
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise InvalidModel(
            f"the model keeps weights in {file.name!r}, which wasn't submitted with it",
            hint=PACK_HINT,
        )


def load_weights(model: onnx.ModelProto, file: Path) -> None:
    """Load the external weights of a model, read from ``file``, into it."""
    external_data_helper.load_external_data_for_model(model, str(file.parent))


def is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def weight_bytes(model: onnx.ModelProto) -> int:
    """The size of the weights, internal and external."""
    return sum(
        prod(tensor.dims) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
        for tensor in tensors_of(model)
    )


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a model exceeds one protobuf message or has external weights."""
    return weight_bytes(model) > MAX_PROTO_BYTES or any(map(is_external, tensors_of(model)))


def write_model(model: onnx.ModelProto, file: Path) -> None:
    """Write a model for a runtime; a large one gets its weights beside it.

    The weights of a large one are removed from ``model``.
    """
    onnx.save(
        model,
        str(file),
        save_as_external_data=is_large(model),
        location=f"{file.name}.data",
        size_threshold=8 * _SMALL_TENSOR,
    )


@contextmanager
def written(model: onnx.ModelProto, file: Path) -> Iterator[Path]:
    """A model as ``write_model`` writes it, for a runtime that reads it within the block; then deleted."""
    write_model(model, file)
    try:
        yield file
    finally:
        for path in (file, file.with_name(f"{file.name}.data")):
            path.unlink(missing_ok=True)


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file; a large one as a pack."""
    folder = path.with_name(f"{path.name}.files")
    folder.mkdir()
    write_model(model, folder / "model.onnx")
    load_weights(model, folder / "model.onnx")
    as_one_file(folder, model, path)


def as_one_file(folder: Path, model: onnx.ModelProto, path: Path) -> None:
    """Make one file of a model written to ``model.onnx`` in a folder, and remove the folder.

    Parameters:
        model: the model as written; external weights may still be in their files.
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
