"""An ONNX model's external data files, operators and names, read without loading it.

Follows only the fields that lead to the locations of external data, to node types, or to names.
"""

from __future__ import annotations

import mmap
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from farm.formats.protobuf import Effort, MalformedMessage, TooManyFields, fields

_MAX_DEPTH = 100

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
#: Where a model tells its name: its graph's, and entries of its metadata.
_GRAPH, _GRAPH_NAME, _METADATA = 7, 2, 14
_NAME_KEYS = (b"model_name", b"name")
_MAX_KEY_BYTES = 20
#: Limits on the length and number of operator types and file names.
_MAX_KIND_BYTES = 1000
_MAX_LOCATION_BYTES = 4096
_MAX_NAMES = 10_000


def operators(path: Path, offset: int = 0, size: int | None = None) -> frozenset[str] | None:
    """The ONNX model's operator types, including those in subgraphs and functions.

    None for a model with so many nodes that it would take too long.

    Parameters:
        offset, size: as for ``external_files``.

    Raises:
        MalformedMessage
    """
    if path.stat().st_size == 0:
        return frozenset()
    with mapped(path, offset, size) as (data, end):
        try:
            return _distinct(_kinds(data, offset, end, "model", 0, Effort()))
        except TooManyFields:
            return None


@contextmanager
def mapped(path: Path, offset: int, size: int | None) -> Iterator[tuple[mmap.mmap, int]]:
    """A file that isn't empty, and where the model in it ends."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        yield data, len(data) if size is None else offset + size


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
    """The type of each node."""
    if depth > _MAX_DEPTH:
        raise MalformedMessage("its graphs are nested too deep")
    nested = _NESTED_NODES[message]
    for number, at, until in fields(data, start, end, effort):
        inner = nested.get(number)
        if inner == "kind":
            yield _text(data, at, until, _MAX_KIND_BYTES)
        elif inner:
            yield from _kinds(data, at, until, inner, depth + 1, effort)


def _text(data: mmap.mmap, at: int, until: int, most: int) -> str:
    if until - at > most:
        raise MalformedMessage(f"it has a name of {until - at} bytes")
    return data[at:until].decode(errors="replace")


class OnnxNames(NamedTuple):
    """What an ONNX model says it is called, empty where it doesn't say. The producer's name is missing: it is
    the exporter's."""

    graph: str = ""
    metadata: str = ""


def names(path: Path, offset: int = 0, size: int | None = None) -> OnnxNames:
    """What the ONNX model says it is called.

    Nothing for a model with so many nodes that it would take too long.

    Parameters:
        offset, size: as for ``external_files``.

    Raises:
        MalformedMessage
    """
    if path.stat().st_size == 0:
        return OnnxNames()
    with mapped(path, offset, size) as (data, end):
        try:
            return _names(data, offset, end, Effort())
        except TooManyFields:
            return OnnxNames()


def external_files(
    path: Path, offset: int = 0, size: int | None = None, *, effort: Effort | None = None
) -> frozenset[str]:
    """The external data locations in the ONNX model, as written there.

    Parameters:
        offset, size: the model's place in the file, in bytes; by default the whole file.
        effort: how much may be read; by default everything.

    Raises:
        MalformedMessage
        TooManyFields: only if ``effort`` is given.
    """
    if path.stat().st_size == 0:
        return frozenset()
    with mapped(path, offset, size) as (data, end):
        found = _locations(data, offset, end, "model", 0, effort)
        return _distinct(found) if effort else frozenset(found)


def location(written: str) -> str:
    """Where a tensor's data lie below its model's folder: ``./x``, ``.\\x`` and ``a/../x`` are ``x``.

    A path that leaves the folder keeps its ``..`` or its leading slash.
    """
    return posixpath.normpath(written.replace("\\", "/"))


def leads_out(place: str) -> bool:
    """Whether a ``location`` isn't below the model's folder."""
    return place in ("", ".", "..") or place.startswith(("/", "../")) or place[1:2] == ":"


def _locations(
    data: mmap.mmap, start: int, end: int, message: str, depth: int, effort: Effort | None
) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise MalformedMessage("its graphs are nested too deep")
    nested = _NESTED[message]
    for number, at, until in fields(data, start, end, effort):
        inner = nested.get(number)
        if inner == "entry":
            entry = {field: (a, b) for field, a, b in fields(data, at, until, effort)}
            key, value = entry.get(_KEY), entry.get(_VALUE, (at, at))
            if key is not None and data[key[0] : min(key[1], key[0] + 9)] == b"location":
                yield _text(data, *value, _MAX_LOCATION_BYTES)
        elif inner:
            yield from _locations(data, at, until, inner, depth + 1, effort)


def _names(data: mmap.mmap, start: int, end: int, effort: Effort) -> OnnxNames:
    found = OnnxNames()
    for number, at, until in fields(data, start, end, effort):
        if number == _GRAPH:
            for inner, a, b in fields(data, at, until, effort):
                if inner == _GRAPH_NAME:
                    found = found._replace(graph=_text(data, a, b, _MAX_KIND_BYTES))
        elif number == _METADATA:
            entry = {field: (a, b) for field, a, b in fields(data, at, until, effort)}
            (key, after), value = entry.get(_KEY, (at, at)), entry.get(_VALUE, (at, at))
            if data[key : min(after, key + _MAX_KEY_BYTES)] in _NAME_KEYS:
                found = found._replace(metadata=_text(data, *value, _MAX_KIND_BYTES))
    return found
