"""Parses a job's messages to its worker as untrusted: bounded in size, checked for shape."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from typing import Any

from farm import errors
from farm.errors import BlobDamaged, FarmError, Rejected, StageFailed, StageFault, StorageFull
from workers.sandbox.pace import Pace

MAX_BYTES = 4 * 2**20  #: of one message; a stage's facts may take a quarter
#: Values in the lists and objects of one message: twice what facts may have. Each becomes two objects.
_MOST_VALUES = 200_000
_MESSAGES_A_S, _MESSAGES_AT_ONCE = 100, 1000
#: Of a phase, as in the database; of each of an error's texts.
_PHASE_CHARS, _TEXT_CHARS = 100, 4000
_HEADER = struct.Struct("!i")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Malformed(Exception):
    """The bytes aren't a valid message from a stage."""


class Inbox:
    """Takes bytes as they arrive and yields complete messages, in the format of
    ``multiprocessing.connection``: four bytes of length, then the content."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._pace, self._size = Pace(_MESSAGES_A_S, at_once=_MESSAGES_AT_ONCE), Pace(MAX_BYTES)

    def may_read(self) -> bool:
        """Whether more may be read now."""
        return self._pace.may() and self._size.may()

    def take(self, data: bytes) -> Iterator[tuple[str, Any]]:
        """Yield the messages completed by these bytes.

        Raises:
            Malformed
        """
        self._size.spend(len(data))
        self._bytes += data
        while len(self._bytes) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._bytes)
            if not 0 <= size <= MAX_BYTES:
                raise Malformed(f"a message of more than {MAX_BYTES} bytes")
            end = _HEADER.size + size
            if len(self._bytes) < end:
                return
            message = bytes(self._bytes[_HEADER.size : end])
            del self._bytes[:end]
            self._pace.spend(1)
            yield _parsed(message)


def _parsed(message: bytes) -> tuple[str, Any]:
    try:
        kind, value = _storable(message)
    except (ValueError, TypeError, RecursionError) as err:
        raise Malformed(f"a message that can't be read: {type(err).__name__}") from err
    if not isinstance(kind, str):
        raise Malformed("a message of no kind")
    return kind, value


def _storable(message: bytes) -> Any:
    """Parse a message's JSON, replacing characters that Postgres text can't hold: a model's own strings may
    contain them. Numbers outside JSON (NaN, infinity) become null."""
    if sum(map(message.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise ValueError("it holds too much")
    text = json.dumps(json.loads(message), ensure_ascii=False).encode(errors="replace")
    return json.loads(text.replace(b"\\u0000", b"\\ufffd"), parse_constant=lambda _: None)


def progress_of(value: Any) -> tuple[str, float | None]:
    """Parse progress: a phase and a share.

    Raises:
        Malformed
    """
    match value:
        case [str(phase), None]:
            return printable(phase, _PHASE_CHARS), None
        case [str(phase), int() | float() as share] if 0 <= share <= 1:
            return printable(phase, _PHASE_CHARS), float(share)
        case [str(phase), int() | float()]:
            return printable(phase, _PHASE_CHARS), None
    raise Malformed("an invalid progress")


def error_of(value: Any) -> FarmError:
    """Parse an error that a stage may end in; anything else is a fault.

    Raises:
        Malformed
    """
    match value:
        case {"code": str(code), "detail": str(detail), "hint": str() | None as hint}:
            said = printable(detail, _TEXT_CHARS)
            advice = printable(hint, _TEXT_CHARS) if hint else None
            made = errors.from_code(code, said, advice)
            # All other errors concern the worker, the database or the lease.
            if isinstance(made, BlobDamaged | StageFailed | Rejected | StorageFull):
                return made
            return StageFault(said)
    raise Malformed("an invalid error")


def printable(text: str, most: int) -> str:
    """The text without terminal control characters, at most ``most`` characters long."""
    clean = _CONTROL.sub("\ufffd", text)
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"
