"""An ONNX model's inputs, read without loading it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from farm.formats.onnx_files import mapped
from farm.formats.protobuf import Effort, MalformedMessage, TooManyFields, fields, numbers
from farm.specs.shapes import ANONYMOUS, TensorSpec

#: onnx.proto: the numbers of fields, by message.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_SPARSE = 5, 11, 15
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2
_SHAPE_DIM = 1
_DIM_VALUE, _DIM_NAME = 1, 2
_INITIALIZER_NAME = 8
_SPARSE_VALUES = 1
#: TensorProto.DataType → numpy's name.
_DTYPES = dict(
    enumerate(
        "float32 uint8 int8 uint16 int16 int32 int64 object bool float16 float64 uint32 uint64 complex64 "
        "complex128 bfloat16".split(),
        start=1,
    )
)
_MAX_NAME_BYTES = 1000

_Data = mmap.mmap


def inputs(path: Path, offset: int = 0, size: int | None = None) -> tuple[TensorSpec, ...] | None:
    """The inputs a caller must supply: those without an initializer as default.

    None where they can't be told: a damaged or huge file, an input that isn't a tensor or has no known rank.
    An anonymous axis is named after its input, as the export does.

    Parameters:
        offset, size: as for ``onnx_files.external_files``.
    """
    if path.stat().st_size == 0:
        return None
    try:
        with mapped(path, offset, size) as (data, end):
            return _inputs(data, offset, end, Effort())
    except (MalformedMessage, TooManyFields, ValueError):
        return None


def _inputs(data: _Data, start: int, end: int, effort: Effort) -> tuple[TensorSpec, ...] | None:
    found: list[TensorSpec] = []
    given: set[str] = set()
    for number, at, until in fields(data, start, end, effort):
        if number != _MODEL_GRAPH:
            continue
        for inner, a, b in fields(data, at, until, effort):
            if inner == _GRAPH_INITIALIZER:
                given.add(_name(data, a, b, _INITIALIZER_NAME, effort))
            elif inner == _GRAPH_SPARSE:
                for c, d in _of(data, a, b, _SPARSE_VALUES, effort):
                    given.add(_name(data, c, d, _INITIALIZER_NAME, effort))
            elif inner == _GRAPH_INPUT:
                spec = _spec(data, a, b, effort)
                if spec is None:
                    return None
                found.append(spec)
    return tuple(spec for spec in found if spec.name not in given) or None


def _spec(data: _Data, at: int, until: int, effort: Effort) -> TensorSpec | None:
    name = _name(data, at, until, _VALUE_NAME, effort)
    tensors = [
        tensor
        for kind in _of(data, at, until, _VALUE_TYPE, effort)
        for tensor in _of(data, *kind, _TYPE_TENSOR, effort)
    ]
    if len(tensors) != 1:
        return None
    elements = dict(numbers(data, *tensors[0], effort))
    shapes = list(_of(data, *tensors[0], _TENSOR_SHAPE, effort))
    dtype = _DTYPES.get(elements.get(_TENSOR_ELEMENT, 0))
    if len(shapes) != 1 or dtype is None:
        return None
    dims = enumerate(_of(data, *shapes[0], _SHAPE_DIM, effort))
    shape = tuple(_dim(data, a, b, f"{name}_{axis}", effort) for axis, (a, b) in dims)
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _dim(data: _Data, at: int, until: int, anonymous: str, effort: Effort) -> int | str:
    """A static axis's size or a dynamic one's name; a negative size means dynamic."""
    value = dict(numbers(data, at, until, effort)).get(_DIM_VALUE)
    if value is not None and value < 2**63:
        return value
    written = _name(data, at, until, _DIM_NAME, effort)
    return anonymous if written in ("", ANONYMOUS) else written


def _of(data: _Data, at: int, until: int, wanted: int, effort: Effort) -> Iterator[tuple[int, int]]:
    """Where a message's fields of this number are."""
    for number, a, b in fields(data, at, until, effort):
        if number == wanted:
            yield a, b


def _name(data: _Data, at: int, until: int, wanted: int, effort: Effort) -> str:
    name = ""
    for a, b in _of(data, at, until, wanted, effort):
        if b - a > _MAX_NAME_BYTES:
            raise MalformedMessage(f"it has a name of {b - a} bytes")
        name = data[a:b].decode()
    return name
