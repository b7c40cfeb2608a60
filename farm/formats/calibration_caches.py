"""TensorRT's calibration caches: ranges that TensorRT 10 and earlier found, by tensor.

A heading such as ``TRT-8501-EntropyCalibration2``, then ``NAME: SCALE`` by line. The scale is a float32 in
hexadecimal, most significant byte first: what the integer 1 stands for, so the range is 127 times that.

Source: NVIDIA, TensorRT 8 samples, sampleINT8, section "Calibration file". For untrusted files.
"""

from __future__ import annotations

import re
import struct
from math import isfinite
from pathlib import Path

from farm.formats.archives import Malformed, behind

#: More than a network of 100,000 tensors needs.
_MOST_BYTES = 16 << 20
_MOST_TENSORS = 200_000
_MOST_NAME_CHARS = 4096
_HEADING = re.compile(r"TRT-\d{1,8}-[A-Za-z]{1,40}Calibration2?")
_SCALE = re.compile(r"[0-9a-fA-F]{8}")


def read(path: Path) -> dict[str, float]:
    """The scale of each tensor, a float32.

    Raises:
        Malformed: it isn't a calibration cache, or holds what no range can be.
        OSError
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise Malformed(f"it has {size} bytes, and a calibration cache at most {_MOST_BYTES}")
    with behind():
        lines = path.read_bytes().decode("utf-8").splitlines()
    if not lines or not _HEADING.fullmatch(lines[0].strip()):
        raise Malformed(
            "its first line isn't a calibration cache's, as TRT-8501-EntropyCalibration2"
        )
    if len(lines) > _MOST_TENSORS:
        raise Malformed(f"it has more than {_MOST_TENSORS} lines")
    found: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            name, scale = _entry(line, number)
            if found.setdefault(name, scale) != scale:
                raise Malformed(f"line {number} has another scale for {name[:200]!r} than before")
    if not found:
        raise Malformed("it holds no tensor's scale")
    return found


def _entry(line: str, number: int) -> tuple[str, float]:
    # A name may hold colons itself.
    name, _, text = line.rpartition(":")
    text = text.strip()
    if not name or len(name) > _MOST_NAME_CHARS or not _SCALE.fullmatch(text):
        raise Malformed(f"line {number} isn't a tensor's name and its scale: {line[:100]!r}")
    scale: float = struct.unpack(">f", bytes.fromhex(text))[0]
    if not isfinite(scale) or scale < 0:
        raise Malformed(f"line {number} has the scale {scale} for {name[:200]!r}")
    return name, scale
