"""Records of a TorchScript archive, and the error for invalid archives."""

from __future__ import annotations

from typing import Protocol

#: Limit for the code and for each pickle: no real module exceeds it.
MAX_BYTES = 64 << 20


class RefusedArchive(ValueError):
    """The archive contains something that could run, or isn't what it claims."""


class Records(Protocol):
    def get_all_records(self) -> list[str]: ...
    def get_record(self, name: str) -> bytes: ...
    def get_record_size(self, name: str) -> int: ...


def record(reader: Records, name: str) -> bytes:
    if reader.get_record_size(name) > MAX_BYTES:
        raise RefusedArchive(f"{name} in it has more than {MAX_BYTES >> 20} MiB")
    try:
        return reader.get_record(name)
    except RuntimeError as err:
        raise RefusedArchive(f"{name} in it is damaged") from err
