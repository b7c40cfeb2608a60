"""Protobuf's text format, as far as Triton's ``config.pbtxt`` needs it. Pure; no protobuf library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_INDENT = "  "
_PRINTABLE = frozenset(range(0x20, 0x7F)) - frozenset(b"\"\\'")


@dataclass(frozen=True)
class Word:
    """An enumeration's value: written without quotes."""

    text: str


#: A field's value; a sequence repeats the field, a mapping is a message. Fields that are None are left out.
Value = str | bool | int | Word | Mapping[str, "Value"] | Sequence["Value"] | None
Message = Mapping[str, Value]


def text(message: Message) -> str:
    """A message in text format, one field a line."""
    return "".join(f"{line}\n" for line in _fields(message))


def quoted(value: str) -> str:
    """A string as a literal: ASCII on one line, whatever a stranger's model calls its tensors.

    Other bytes of its UTF-8 are octal escapes: those of fixed length, so that no digit after one joins it.
    """
    return '"' + "".join(_escaped(byte) for byte in value.encode()) + '"'


def _escaped(byte: int) -> str:
    return chr(byte) if byte in _PRINTABLE else f"\\{byte:03o}"


def _fields(message: Message) -> Iterator[str]:
    for name, value in message.items():
        if value is None:
            continue
        if not isinstance(value, Sequence) or isinstance(value, str):
            yield from _field(name, value)
        elif value and all(isinstance(one, int) for one in value):
            yield f"{name}: [{', '.join(map(str, value))}]"
        else:
            for one in value:
                yield from _field(name, one)


def _field(name: str, value: Value) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{name}: {_scalar(value)}"
        return
    lines = list(_fields(value))
    if not lines:
        yield f"{name} {{ }}"
        return
    yield f"{name} {{"
    yield from (f"{_INDENT}{line}" for line in lines)
    yield "}"


def _scalar(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Word():
            return value.text
        case str():
            return quoted(value)
        case _:
            return str(value)
