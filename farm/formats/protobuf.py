"""Reads protobuf's wire format field by field without a schema, a library or a copy, for untrusted files.

A hostile message costs no more than its length, or the given effort: numbers have at most ten bytes, a length
can't lead outside its message, and groups, which nest without a length, are refused. Bounding the nesting
depth is up to the caller.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: Fields to read before giving up: a graph of about ten thousand nodes.
_MAX_LOOKS = 300_000


class MalformedMessage(ValueError):
    """The bytes aren't a message in protobuf's wire format."""


class TooManyFields(Exception):
    """Reading all of it would take too long."""


class Effort:
    """A limit on the number of fields read, of any kind, across files."""

    def __init__(self, fields: int | None = None) -> None:
        self.left = _MAX_LOOKS if fields is None else fields


def fields(
    data: bytes | mmap.mmap, at: int, end: int, effort: Effort | None = None
) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field; others are skipped.

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
        else:
            at = _skipped(data, kind, at, end)


def numbers(
    data: bytes | mmap.mmap, at: int, end: int, effort: Effort | None = None
) -> Iterator[tuple[int, int]]:
    """Number and value of each varint field, as an unsigned 64-bit number; others are skipped.

    Raises:
        MalformedMessage, TooManyFields
    """
    while at < end:
        if effort is not None:
            effort.left -= 1
            if effort.left < 0:
                raise TooManyFields
        tag, after = _varint(data, at, end)
        if tag & 7 == _VARINT:
            value, at = _varint(data, after, end)
            yield tag >> 3, value & (2**64 - 1)
            continue
        at = _skipped(data, tag & 7, after, end)


def _skipped(data: bytes | mmap.mmap, kind: int, at: int, end: int) -> int:
    """Where a field ends."""
    if kind == _VARINT:
        return _varint(data, at, end)[1]
    if kind == _BYTES:
        size, at = _varint(data, at, end)
        if at + size > end:
            raise MalformedMessage("it is cut off")
        return at + size
    if kind in (_FIXED64, _FIXED32):
        return at + (8 if kind == _FIXED64 else 4)
    raise MalformedMessage(f"it has a field of the unknown kind {kind}")


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    if at < end and (byte := data[at]) < 0x80:  # nearly always
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
