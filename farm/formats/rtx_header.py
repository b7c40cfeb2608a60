"""The header of a TensorRT-RTX engine, read from its bytes without the runtime.

Layout (little-endian), found by building and comparing engines of tensorrt-rtx 1.7.1:
``vtrt`` at 0, the engine's size as u64 at 16, four version bytes at 24, a mask of compute
capabilities as u32 at 32. The header says what an engine is for, not that it is undamaged: only a
sha256 of the whole says that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = b"vtrt"
#: How many bytes of an engine :func:`parse_header` needs.
HEADER_BYTES = 36

_CAPABILITY_BITS = {
    0x01: "sm_75",
    0x02: "sm_80",
    0x04: "sm_86",
    0x08: "sm_89",
    0x10: "sm_120",
    0x20: "sm_121",
}


class MalformedHeader(ValueError):
    """These bytes don't begin with the header of a TensorRT-RTX engine."""


@dataclass(frozen=True, kw_only=True)
class EngineHeader:
    """What an engine says about itself."""

    version: str  #: the four-part version of the runtime that built it: ``1.7.1.116``
    bytes: int  #: the size of the whole engine
    compute_capabilities: tuple[str, ...]  #: ascending: ``("sm_86", "sm_89")``


def parse_header(data: bytes) -> EngineHeader:
    """Read the header from the first :data:`HEADER_BYTES` bytes of an engine, or from all of it.

    Raises:
        MalformedHeader: if they aren't a TensorRT-RTX engine's, or name an unknown capability.
    """
    if len(data) < HEADER_BYTES:
        raise MalformedHeader(f"an engine's header has {HEADER_BYTES} bytes, these are {len(data)}")
    if data[:4] != MAGIC:
        raise MalformedHeader(f"an engine begins with {MAGIC!r}, this one with {data[:4]!r}")
    (size,) = struct.unpack_from("<Q", data, 16)
    if size < HEADER_BYTES:
        raise MalformedHeader(f"the header gives the engine's size as {size} bytes")
    (mask,) = struct.unpack_from("<I", data, 32)
    return EngineHeader(
        version=".".join(str(part) for part in data[24:28]),
        bytes=size,
        compute_capabilities=_capabilities(mask),
    )


def _capabilities(mask: int) -> tuple[str, ...]:
    unknown = mask & ~sum(_CAPABILITY_BITS)
    if unknown:
        raise MalformedHeader(f"the header has unknown compute capabilities: {unknown:#x}")
    return tuple(name for bit, name in _CAPABILITY_BITS.items() if mask & bit)
