"""An ONNX model's inputs and outputs as it declares them, read without loading it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from farm.formats.onnx_files import mapped
from farm.formats.protobuf import Effort, MalformedMessage, TooManyFields, fields, numbers
from farm.reports.interfaces import Interface, Port
from farm.specs.shapes import ANONYMOUS, TensorSpec

#: onnx.proto's field numbers, by message.
_GRAPH = 7
_INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 5, 11, 12, 15
_TENSOR_NAME = 8
_NAME, _TYPE = 1, 2
_TENSOR_TYPE = 1
_ELEMENT, _SHAPE = 1, 2
_DIMENSION = 1
_SIZE, _AXIS_NAME = 1, 2
_UNKNOWN = "?"
#: ``TensorProto.DataType`` as numpy calls them.
_DTYPES = (
    *("?", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "object", "bool"),
    *("float16", "float64", "uint32", "uint64", "complex64", "complex128", "bfloat16"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "uint4", "int4"),
)
_MOST_PORTS = 100_000  #: with the initializers that older models list as inputs
_LONGEST_NAME = 4096


def interface(path: Path, offset: int = 0, size: int | None = None) -> Interface | None:
    """The inputs that a caller must supply, and the outputs.

    None if the model is damaged, if it would take too long, or there are more than the farm compares.

    Parameters:
        offset, size: as for ``onnx_files.external_files``.
    """
    if path.stat().st_size == 0:
        return None
    with mapped(path, offset, size) as (data, end):
        try:
            return _interface(data, offset, end, Effort())
        except (MalformedMessage, TooManyFields):
            return None  # the export reports what is wrong with it


def inputs(path: Path) -> tuple[TensorSpec, ...] | None:
    """The inputs that a caller must supply; None where one isn't a tensor of known type and rank.

    An anonymous axis is named after its input, as the export does.
    """
    found = interface(path)
    specs = tuple(filter(None, map(_spec, found.inputs))) if found else ()
    return specs if found and specs and len(specs) == len(found.inputs) else None


def _spec(port: Port) -> TensorSpec | None:
    if port.shape is None or port.dtype == _UNKNOWN:
        return None
    shape = tuple(
        f"{port.name}_{at}" if axis == ANONYMOUS else axis for at, axis in enumerate(port.shape)
    )
    return TensorSpec(name=port.name, dtype=port.dtype, shape=shape)


def _interface(data: mmap.mmap, start: int, end: int, effort: Effort) -> Interface | None:
    given: set[str] = set()
    ports: dict[int, list[tuple[int, int]]] = {_INPUT: [], _OUTPUT: []}
    for number, at, until in fields(data, start, end, effort):
        if number != _GRAPH:
            continue
        for inner, a, b in fields(data, at, until, effort):
            if inner in ports:
                ports[inner].append((a, b))
            elif inner in (_INITIALIZER, _SPARSE):
                given |= set(_names(data, inner, a, b, effort))
            if len(given) + sum(map(len, ports.values())) > _MOST_PORTS:
                raise TooManyFields
    inputs, outputs = (
        [_port(data, a, b, effort) for a, b in ports[way]] for way in (_INPUT, _OUTPUT)
    )
    return Interface.read(
        {"inputs": [one for one in inputs if one["name"] not in given], "outputs": outputs}
    )


def _names(data: mmap.mmap, kind: int, start: int, end: int, effort: Effort) -> Iterator[str]:
    """The name of an initializer; a sparse one has its values'."""
    for number, at, until in fields(data, start, end, effort):
        if kind == _SPARSE and number == _NAME:
            yield from _names(data, _INITIALIZER, at, until, effort)
        elif kind == _INITIALIZER and number == _TENSOR_NAME:
            yield _text(data, at, until)


def _port(data: mmap.mmap, start: int, end: int, effort: Effort) -> dict[str, object]:
    found: dict[str, object] = {"name": "", "dtype": _UNKNOWN, "shape": None}
    for number, at, until in fields(data, start, end, effort):
        if number == _NAME:
            found["name"] = _text(data, at, until)
        elif number == _TYPE:
            for kind, a, b in fields(data, at, until, effort):
                if kind == _TENSOR_TYPE:
                    found |= _tensor(data, a, b, effort)
    return found


def _tensor(data: mmap.mmap, start: int, end: int, effort: Effort) -> dict[str, object]:
    said = dict(numbers(data, start, end, effort)).get(_ELEMENT, 0)
    found: dict[str, object] = {"dtype": _DTYPES[said] if said < len(_DTYPES) else _UNKNOWN}
    for number, at, until in fields(data, start, end, effort):
        if number == _SHAPE:
            dimensions = fields(data, at, until, effort)
            found["shape"] = [
                _axis(data, a, b, effort) for kind, a, b in dimensions if kind == _DIMENSION
            ]
    return found


def _axis(data: mmap.mmap, start: int, end: int, effort: Effort) -> int | str:
    size = dict(numbers(data, start, end, effort)).get(_SIZE)
    if size is not None and size < 2**63:  # a negative one, in two's complement, is dynamic
        return size
    written = [
        _text(data, a, b) for kind, a, b in fields(data, start, end, effort) if kind == _AXIS_NAME
    ]
    return (written[-1] if written else "") or ANONYMOUS


def _text(data: mmap.mmap, at: int, until: int) -> str:
    if until - at > _LONGEST_NAME:
        raise MalformedMessage(f"it has a name of {until - at} bytes")
    return data[at:until].decode(errors="replace")
