"""Names, types and shapes of the arrays in a ``.npz``, ``.npy`` or ``.safetensors`` file, without NumPy.

For untrusted files: only headers are read, each within a limit, whatever their lengths say.
"""

from __future__ import annotations

import ast
import json
import zipfile
from math import prod
from pathlib import Path
from typing import IO, BinaryIO

from farm.formats.archives import Malformed, behind, zip_names
from farm.specs.samples import Head

NPY = b"\x93NUMPY"
#: NumPy's own limit.
_MAX_HEADER_BYTES = 10_000
_MAX_SAFETENSORS_HEADER_BYTES = 8 << 20
_MAX_AXES = 64
_MAX_ARRAYS = 2000
#: What NumPy writes; others may take much memory to begin with.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
_SAFETENSORS = {
    "BOOL": "bool",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
} | {
    f"{kind}{bits}": f"{name}{bits}"
    for kind, name in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}


def heads(path: Path) -> dict[str, Head]:
    """Each array's type and shape.

    Raises:
        Malformed: the file is damaged, holds something else than arrays of numbers, or arrays that are longer
            than the file says.
        OSError
    """
    with behind(), path.open("rb") as file:
        magic = file.read(9)
        file.seek(0)
        if magic[:2] == b"PK":
            zip_names(path)  # checks the size of its directory
            return _of_npz(file)
        if magic[8:9] == b"{":
            return _of_safetensors(file)
        if magic.startswith(NPY):
            return {"arr_0": head_in(file, path.stat().st_size)}
        raise Malformed("the file is neither .npz, .npy nor .safetensors")


def bytes_of(head: Head) -> int:
    """The bytes that an array takes in memory."""
    bits = "".join(char for char in head.dtype if char.isdigit())
    return prod(head.shape) * (int(bits) // 8 if bits else 1)


def _of_npz(file: BinaryIO) -> dict[str, Head]:
    found: dict[str, Head] = {}
    with zipfile.ZipFile(file) as archive:
        if len(archive.infolist()) > _MAX_ARRAYS:
            raise Malformed(f"it has more than {_MAX_ARRAYS} arrays")
        for info in archive.infolist():
            if info.flag_bits & 1 or info.compress_type not in _COMPRESSIONS:
                raise Malformed(f"{info.filename[:80]!r} in it is encrypted or oddly compressed")
            with archive.open(info) as member:
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise Malformed(f"{name[:80]!r} is in it twice")
                found[name] = head_in(member, info.file_size, info.filename)
    return found


def head_in(file: IO[bytes], size: int, name: str = "") -> Head:
    """An array's head, checked against the size of its file."""
    what = f"{name[:80]!r} in it" if name else "the file"
    start = file.read(8)
    if not start.startswith(NPY) or len(start) < 8:
        raise Malformed(f"{what} isn't an array")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _MAX_HEADER_BYTES:
        raise Malformed(f"{what} has a header of {length} bytes")
    text = file.read(length).decode("latin-1" if start[6] < 3 else "utf-8")
    header = ast.literal_eval(text.strip())
    head = Head(_dtype(header["descr"], what), _shape(header["shape"], what))
    if 8 + width + length + bytes_of(head) > size:
        raise Malformed(f"{what} is shorter than its header says")
    return head


def _dtype(descr: object, what: str) -> str:
    """``<f4`` → ``float32``."""
    if not isinstance(descr, str):
        raise Malformed(f"{what} holds records, not numbers")
    kind, size = descr.lstrip("<>|=")[:1], descr.lstrip("<>|=")[1:]
    if kind == "O":
        raise Malformed("Object arrays cannot be loaded when allow_pickle=False")
    if kind == "b" and size == "1":
        return "bool"
    if kind not in _KINDS or size not in ("1", "2", "4", "8", "16"):
        raise Malformed(f"{what} holds {descr[:20]!r}, not numbers")
    return f"{_KINDS[kind]}{int(size) * 8}"


def _shape(shape: object, what: str) -> tuple[int, ...]:
    axes = tuple(shape) if isinstance(shape, tuple | list) else (-1,)
    if len(axes) > _MAX_AXES or not all(type(axis) is int and 0 <= axis < 2**63 for axis in axes):
        raise Malformed(f"{what} has no valid shape")
    return axes


def _of_safetensors(file: BinaryIO) -> dict[str, Head]:
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_SAFETENSORS_HEADER_BYTES:
        raise Malformed(f"the file has a header of {length} bytes")
    header = json.loads(file.read(length))
    return {
        name: Head(
            _SAFETENSORS.get(entry["dtype"], str(entry["dtype"])[:20]),
            _shape(entry["shape"], f"{name[:80]!r} in it"),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }
