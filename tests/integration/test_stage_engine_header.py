"""The header of a TensorRT-RTX engine, read without the runtime."""

from __future__ import annotations

import struct

import pytest

from farm.formats.rtx_header import HEADER_BYTES, MalformedHeader, parse_header


def header(
    *, magic: bytes = b"vtrt", size: int = 4096, version: bytes = b"\x01\x07\x01\x74", mask: int = 8
) -> bytes:
    data = bytearray(64)
    data[:4] = magic
    struct.pack_into("<Q", data, 16, size)
    data[24:28] = version
    struct.pack_into("<I", data, 32, mask)
    return bytes(data)


def test_version_and_size_are_read() -> None:
    parsed = parse_header(header())
    assert (parsed.version, parsed.bytes) == ("1.7.1.116", 4096)


@pytest.mark.parametrize(
    ("mask", "capabilities"),
    [
        (0x01, ("sm_75",)),
        (0x02, ("sm_80",)),
        (0x04, ("sm_86",)),
        (0x08, ("sm_89",)),
        (0x10, ("sm_120",)),
        (0x20, ("sm_121",)),
        (0x0C, ("sm_86", "sm_89")),
        (0x00, ()),
    ],
)
def test_the_mask_names_compute_capabilities(mask: int, capabilities: tuple[str, ...]) -> None:
    assert parse_header(header(mask=mask)).compute_capabilities == capabilities


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header()[: HEADER_BYTES - 1],
        header(magic=b"ftrt"),
        header(size=3),
        header(mask=0x100),
        b"\x08\x0a" * 40,
    ],
)
def test_other_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedHeader):
        parse_header(data)


def test_malformed_is_a_value_error() -> None:
    assert issubclass(MalformedHeader, ValueError)
