"""Arrays of a data file that are read when they are indexed, so that a file may be larger than memory.

What ``numpy.savez`` stores, ``.npy`` and ``.safetensors`` are read at their offsets; a compressed array is
unpacked from the front, once as long as it is read in order. Nothing is kept between reads, and pages of a
mapped file would count as the process's memory, so files are mapped for one read each.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from farm.formats.archives import Malformed, zip_names
from farm.formats.array_files import NPY, heads
from farm.specs.samples import POSITIONAL

#: Smaller arrays are read at once.
SMALL_BYTES = 1 << 20
_SAFETENSORS = {"BF16", "F8_E4M3", "F8_E5M2"}  #: that NumPy lacks
_LOCAL_HEADER_BYTES = 30


class Column:
    """An array on disk, as much of NumPy's interface as batches take: indexing the first axis copies."""

    #: Whether its values are computed, and therefore never NaN or infinite: reading all to see is no use.
    is_finite = False

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self._rows(0, len(self)), dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """The samples that a slice or indices name; a tuple's further axes are indexed after them."""
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if isinstance(first, slice):
            start, stop, step = first.indices(len(self))
            rows = self._rows(start, max(start, stop)) if step == 1 else None
            if rows is not None:
                return rows[(slice(None), *rest)]
            first = np.arange(start, stop, step)
        return self._picked(np.asarray(first))[(slice(None), *rest)]

    def selected(self, which: NDArray[np.bool_]) -> Column:
        """Some of the samples, still on disk."""
        return _Selected(self, np.flatnonzero(which))

    def _picked(self, which: NDArray[Any]) -> NDArray[Any]:
        numbers = np.flatnonzero(which) if which.dtype == np.bool_ else which.astype(np.int64)
        made = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        order = np.argsort(numbers, kind="stable")
        # One read for each run of samples that follow one another.
        breaks = np.flatnonzero(np.diff(numbers[order]) > 1) + 1
        for run in np.split(order, breaks):
            if len(run):
                low, high = int(numbers[run[0]]), int(numbers[run[-1]]) + 1
                made[run] = self._rows(low, high)[numbers[run] - low]
        return made

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        raise NotImplementedError


class _Selected(Column):
    def __init__(self, of: Column, numbers: NDArray[np.intp]) -> None:
        super().__init__((len(numbers), *of.shape[1:]), of.dtype)
        self._of, self._numbers = of, numbers

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        return self._of[self._numbers[start:stop]]


class _Mapped(Column):
    """Stored as it is."""

    def __init__(
        self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        super().__init__(shape, dtype)
        self._path, self._offset = path, offset
        if offset + self.nbytes > path.stat().st_size:
            raise Malformed("the file is shorter than its header says")

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        row = prod(self.shape[1:])
        with self._path.open("rb") as file:
            file.seek(self._offset + start * row * self.dtype.itemsize)
            read = np.fromfile(file, self.dtype, (stop - start) * row)
        return read.reshape(stop - start, *self.shape[1:])


@dataclass
class _Place:
    """Where the last read ended."""

    stream: IO[bytes] | None = None
    row: int = 0


class _Packed(Column):
    """Compressed: going back starts over."""

    def __init__(
        self, path: Path, member: str, skip: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        super().__init__(shape, dtype)
        self._path, self._member, self._skip = path, member, skip
        self._at = _Place()

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        row = prod(self.shape[1:]) * self.dtype.itemsize
        if self._at.stream is None or start < self._at.row:
            with zipfile.ZipFile(self._path) as archive:
                stream = archive.open(self._member)  # holds the file by itself
            _pass(stream, self._skip)
            self._at = _Place(stream, 0)
        assert self._at.stream is not None
        _pass(self._at.stream, (start - self._at.row) * row)
        read = self._at.stream.read((stop - start) * row)
        self._at.row = stop
        if len(read) != (stop - start) * row:
            raise Malformed("the file is shorter than its header says")
        return np.frombuffer(read, self.dtype).reshape(stop - start, *self.shape[1:])


def _pass(stream: IO[bytes], count: int) -> None:
    while count > 0:
        read = len(stream.read(min(count, 1 << 20)))
        if not read:
            raise Malformed("the file is shorter than its header says")
        count -= read


def columns(path: Path) -> dict[str, NDArray[Any] | Column]:
    """The arrays of a file; those that are large, and have their samples in one piece, stay on disk.

    Raises:
        Malformed
        OSError
    """
    heads(path)  # refuses what isn't arrays of numbers, by the headers alone
    with path.open("rb") as file:
        magic = file.read(9)
    if magic[:2] == b"PK":
        return _of_npz(path)
    if magic.startswith(NPY):
        return columns_in(path, {POSITIONAL: 0})
    return _of_safetensors(path)


def columns_in(path: Path, at: Mapping[str, int]) -> dict[str, NDArray[Any] | Column]:
    """The ``.npy`` files that begin at these offsets of a file, by name."""
    found: dict[str, NDArray[Any] | Column] = {}
    with path.open("rb") as file:
        for name, offset in at.items():
            file.seek(offset)
            shape, fortran, dtype = _npy_head(file)
            if shape and not fortran:
                found[name] = _settled(_Mapped(path, file.tell(), shape, dtype))
            else:
                file.seek(offset)
                found[name] = npy.read_array(file, allow_pickle=False)
    return found


def _settled(array: NDArray[Any] | Column) -> NDArray[Any] | Column:
    return np.asarray(array) if array.nbytes <= SMALL_BYTES or not array.ndim else array


def _npy_head(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise Malformed("Object arrays cannot be loaded when allow_pickle=False")
    return tuple(shape), bool(fortran) and len(shape) > 1, dtype


def _of_npz(path: Path) -> dict[str, NDArray[Any] | Column]:
    zip_names(path)  # checks the size of its directory
    found: dict[str, NDArray[Any] | Column] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                shape, fortran, dtype = _npy_head(member)
                skip = member.tell()
            size = prod(shape) * dtype.itemsize
            if fortran or size <= SMALL_BYTES or not shape:
                with archive.open(info) as member:
                    found[name] = npy.read_array(member, allow_pickle=False)
            elif info.compress_type == zipfile.ZIP_STORED:
                with archive.open(info) as member:
                    _pass(member, info.file_size)  # checks its sum, which reads by offset don't
                start = _start_of(path, info.header_offset) + skip
                found[name] = _Mapped(path, start, shape, dtype)
            else:
                found[name] = _Packed(path, info.filename, skip, shape, dtype)
    return found


def _start_of(path: Path, offset: int) -> int:
    """Where a member's bytes begin, behind its local header."""
    with path.open("rb") as file:
        file.seek(offset)
        header = file.read(_LOCAL_HEADER_BYTES)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return offset + _LOCAL_HEADER_BYTES + name + extra


def _of_safetensors(path: Path) -> dict[str, NDArray[Any] | Column]:
    from safetensors.numpy import load_file

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if any(entry["dtype"] in _SAFETENSORS for entry in entries.values()):
        return dict(load_file(path))  # knows how, or refuses
    known: Mapping[str, Any] = {name: head.dtype for name, head in heads(path).items()}
    made: dict[str, NDArray[Any] | Column] = {}
    for name, entry in entries.items():
        low, high = entry["data_offsets"]
        dtype = np.dtype(known[name])
        shape = tuple(entry["shape"])
        if low < 0 or high - low != prod(shape) * dtype.itemsize:
            raise Malformed(f"{name[:80]!r} in it isn't as long as its shape says")
        if high == low or not shape:
            raw = _Mapped(path, 8 + length + low, (prod(shape),), dtype)
            made[name] = np.asarray(raw).reshape(shape)
        else:
            made[name] = _settled(_Mapped(path, 8 + length + low, shape, dtype))
    return made
