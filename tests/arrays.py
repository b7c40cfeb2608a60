"""Array files of zeros written without NumPy, for tests that the client's wheel alone runs too."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path

Array = tuple[str, tuple[int, ...]]  # NumPy's descr, such as "<f4", and the shape


def npy(descr: str, shape: tuple[int, ...], *, content: bytes | None = None) -> bytes:
    """A ``.npy`` file."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    size = int(descr[-1]) if descr[-1].isdecimal() else 8
    values = bytes(prod(shape) * size) if content is None else content
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values


def npz(path: Path, **arrays: Array) -> Path:
    """A ``.npz`` file of these arrays."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (descr, shape) in arrays.items():
            archive.writestr(f"{name}.npy", npy(descr, shape))
    return path
