"""Protobuf's wire format, read field by field without a schema, a library or a copy: of strangers' files.

A message of hostile bytes costs no more than its length, or than the effort that it is given: numbers are ten
bytes at most, a length leads nowhere outside its message, and groups, which nest without a length, are
refused. How deep messages nest is for whoever follows them to bound.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: Fields to look at before giving up: of a graph of some ten thousand nodes.
_MAX_LOOKS = 300_000


class MalformedMessage(ValueError):
    """The bytes aren't a message in protobuf's wire format."""


class TooManyFields(Exception):
    """It would take long to look at all of it."""


class Effort:
    """How much may be looked at: so many fields, of whatever kind and in whatever files."""

    def __init__(self, fields: int | None = None) -> None:
        self.left = _MAX_LOOKS if fields is None else fields


def fields(
    data: bytes | mmap.mmap, at: int, end: int, effort: Effort | None = None
) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field that has a length; others are passed over.

    Raises:
        MalformedMessage, TooManyFields
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
                raise MalformedMessage("it is cut off")
            yield number, at, at + size
            at += size
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise MalformedMessage(f"it has a field of the unknown kind {kind}")


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    if at < end and (byte := data[at]) < 0x80:  # nearly all of them
        return byte, at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise MalformedMessage("it is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedMessage("it has a number that is too long")
