"""What a file is, by its first bytes and its directory. Nothing is loaded, and it may be anything."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from farm.formats import packs, rtx_header
from farm.formats.archives import Malformed, zip_names
from farm.formats.array_files import NPY
from farm.formats.onnx_files import operators
from farm.formats.protobuf import MalformedMessage, TooManyFields
from farm.formats.sources import has_torchscript, is_program

#: How a TensorRT plan begins, since TensorRT 8.
_PLAN = b"ftrt"
_ZIP = b"PK\x03\x04"
_MOST_HEADER_BYTES = 100 * 2**20  #: of safetensors


class FileKind(StrEnum):
    """A kind of file that the farm has to do with."""

    TENSORRT = "a TensorRT engine"
    TENSORRT_RTX = "a TensorRT-RTX engine"
    ONNX = "an ONNX model"
    TORCHSCRIPT = "a TorchScript program"
    AOTINDUCTOR = "an AOTInductor package"
    PT2 = "a torch.export program"
    SAFETENSORS = "safetensors weights"
    ARRAYS = "arrays: calibration or evaluation data, inputs or outputs"
    PACK = "a tar of a model's files"
    UNKNOWN = "nothing that the farm makes or takes"


def kind_of(path: Path) -> FileKind:
    """What a file is."""
    with path.open("rb") as file:
        start = file.read(rtx_header.HEADER_BYTES)
    if start.startswith(rtx_header.MAGIC):
        return FileKind.TENSORRT_RTX
    if start.startswith(_PLAN):
        return FileKind.TENSORRT
    if start.startswith(_ZIP):
        return _zipped(path)
    if start.startswith(NPY):
        return FileKind.ARRAYS
    if packs.is_pack(path):
        return FileKind.PACK
    if _is_safetensors(start):
        return FileKind.SAFETENSORS
    return FileKind.ONNX if _is_onnx(path) else FileKind.UNKNOWN


def in_words(path: Path) -> str:
    """What a file is, with what its header says of it."""
    kind = kind_of(path)
    if kind is not FileKind.TENSORRT_RTX:
        return kind.value
    try:
        with path.open("rb") as file:
            header = rtx_header.parse_header(file.read(rtx_header.HEADER_BYTES))
    except rtx_header.MalformedHeader as err:
        return f"{kind.value} with a damaged header: {err}"
    return f"{kind.value} of {header.version} for {', '.join(header.compute_capabilities)}"


def _zipped(path: Path) -> FileKind:
    try:
        names = zip_names(path)
    except Malformed:
        return FileKind.UNKNOWN
    if names and all(name.endswith(".npy") for name in names):
        return FileKind.ARRAYS
    if has_torchscript(names):
        return FileKind.TORCHSCRIPT
    if any("data/aotinductor/" in name for name in names):
        return FileKind.AOTINDUCTOR
    return FileKind.PT2 if is_program(names) else FileKind.UNKNOWN


def _is_safetensors(start: bytes) -> bool:
    size = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 2 <= size <= _MOST_HEADER_BYTES


def _is_onnx(path: Path) -> bool:
    try:
        return operators(path) != frozenset()  # None for a model too large to walk through
    except (MalformedMessage, TooManyFields, ValueError):
        return False
