"""Which other files an ONNX model keeps weights in, and which operators it has, found without loading it.

Reads just as much of protobuf's wire format as leads to the locations of tensors' external data, or to
the kinds of nodes.
"""

from __future__ import annotations

import mmap
import posixpath
from collections.abc import Iterator
from pathlib import Path

_MAX_DEPTH = 100
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

#: onnx.proto: by message, the fields that hold messages which may hold tensors.
_NESTED = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2
#: The fields that hold messages which may hold nodes, and a node's kind.
_NESTED_NODES = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node"},
    "function": {7: "node"},
    "node": {4: "kind", 5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
}
#: Fields to look at before giving up: of a graph of some ten thousand nodes.
_MAX_LOOKS = 300_000
#: Of an operator's kind, of a file's name, and of how many of each there are.
_MAX_KIND_BYTES = 1000
_MAX_LOCATION_BYTES = 4096
_MAX_NAMES = 10_000


class MalformedModel(ValueError):
    """The bytes aren't a model in protobuf's wire format."""


class TooManyFields(Exception):
    """It would take long to look at all of the model."""


class Effort:
    """How much may be looked at: so many fields, of whatever kind and in whatever files."""

    def __init__(self, fields: int | None = None) -> None:
        self.left = _MAX_LOOKS if fields is None else fields


def operators(path: Path, offset: int = 0, size: int | None = None) -> frozenset[str] | None:
    """The kinds of nodes of the ONNX model, those of bodies and functions too.

    None for a model of so many nodes that it would take long to look at.

    Parameters:
        offset, size: as of ``external_files``.

    Raises:
        MalformedModel
    """
    if path.stat().st_size == 0:
        return frozenset()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        end = len(data) if size is None else offset + size
        try:
            return _distinct(_kinds(data, offset, end, "model", 0, Effort()))
        except TooManyFields:
            return None


def _distinct(names: Iterator[str]) -> frozenset[str]:
    found: set[str] = set()
    for name in names:
        found.add(name)
        if len(found) > _MAX_NAMES:
            raise TooManyFields
    return frozenset(found)


def _kinds(
    data: mmap.mmap, start: int, end: int, message: str, depth: int, effort: Effort
) -> Iterator[str]:
    """The kind of each node."""
    if depth > _MAX_DEPTH:
        raise MalformedModel("its graphs are nested too deep")
    nested = _NESTED_NODES[message]
    for number, at, until in _fields(data, start, end, effort):
        inner = nested.get(number)
        if inner == "kind":
            yield _text(data, at, until, _MAX_KIND_BYTES)
        elif inner:
            yield from _kinds(data, at, until, inner, depth + 1, effort)


def _text(data: mmap.mmap, at: int, until: int, most: int) -> str:
    if until - at > most:
        raise MalformedModel(f"it has a name of {until - at} bytes")
    return data[at:until].decode(errors="replace")


def external_files(
    path: Path, offset: int = 0, size: int | None = None, *, effort: Effort | None = None
) -> frozenset[str]:
    """The locations that tensors of the ONNX model name, as the model writes them.

    Parameters:
        offset, size: where the model lies in the file, in bytes; by default it is all of it.
        effort: how much may be looked at; by default all.

    Raises:
        MalformedModel
        TooManyFields: only with an effort.
    """
    if path.stat().st_size == 0:
        return frozenset()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        end = len(data) if size is None else offset + size
        found = _locations(data, offset, end, "model", 0, effort)
        return _distinct(found) if effort else frozenset(found)


def location(written: str) -> str:
    """Where a tensor's data lie below its model's folder: ``./x``, ``.\\x`` and ``a/../x`` are ``x``.

    What leads out of the folder keeps its ``..`` or its leading slash.
    """
    return posixpath.normpath(written.replace("\\", "/"))


def leads_out(place: str) -> bool:
    """Whether a ``location`` isn't below the model's folder."""
    return place in ("", ".", "..") or place.startswith(("/", "../")) or place[1:2] == ":"


def _locations(
    data: mmap.mmap, start: int, end: int, message: str, depth: int, effort: Effort | None
) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise MalformedModel("its graphs are nested too deep")
    nested = _NESTED[message]
    for number, at, until in _fields(data, start, end, effort):
        inner = nested.get(number)
        if inner == "entry":
            entry = {field: (a, b) for field, a, b in _fields(data, at, until, effort)}
            key, value = entry.get(_KEY), entry.get(_VALUE, (at, at))
            if key is not None and data[key[0] : min(key[1], key[0] + 9)] == b"location":
                yield _text(data, *value, _MAX_LOCATION_BYTES)
        elif inner:
            yield from _locations(data, at, until, inner, depth + 1, effort)


def _fields(
    data: mmap.mmap, at: int, end: int, effort: Effort | None
) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field that has a length; others are passed over.

    Raises:
        MalformedModel, TooManyFields
    """
    while at < end:
        if effort is not None:
            effort.left -= 1
            if effort.left < 0:
                raise TooManyFields
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            size, at = _varint(data, at, end)
            if at + size > end:
                raise MalformedModel("it is cut off")
            yield number, at, at + size
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise MalformedModel(f"it has a field of the unknown kind {kind}")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    if at < end and (byte := data[at]) < 0x80:  # nearly all of them
        return byte, at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise MalformedModel("it is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedModel("it has a number that is too long")
