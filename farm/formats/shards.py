"""Safetensors in several files, as the one file that they would have been."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from farm.formats.archives import Malformed

_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100 << 20
_ALIGN = 8
_METADATA = "__metadata__"


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The tensors of several files; equal files give equal bytes."""

    name: str
    paths: Sequence[Path]

    @cached_property
    def _parts(self) -> Sequence[tuple[Path, int, int]]:
        """Each file, and where its tensors begin and end."""
        return [(path, 8 + _header_bytes(path), path.stat().st_size) for path in sorted(self.paths)]

    @cached_property
    def _header(self) -> bytes:
        """The header of them all, with the tensors of each file after those of the file before.

        Raises:
            Malformed
        """
        found: dict[str, Any] = {}
        before = 0
        for path, start, end in self._parts:
            for name, entry in _tensors(path).items():
                if name in found:
                    raise Malformed(f"{name!r} is in two of its files")
                first, last = entry["data_offsets"]
                found[name] = entry | {"data_offsets": [before + first, before + last]}
            before += end - start
        text = json.dumps({_METADATA: {"format": "pt"}} | found).encode()
        text += b" " * (-len(text) % _ALIGN)
        return len(text).to_bytes(8, "little") + text

    @property
    def total_bytes(self) -> int:
        return len(self._header) + sum(end - start for _, start, end in self._parts)

    def chunks(self) -> Iterator[bytes]:
        """The file, in small chunks."""
        yield self._header
        for path, start, _ in self._parts:
            with path.open("rb") as file:
                file.seek(start)
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length + 8 > path.stat().st_size or length > _MAX_HEADER_BYTES:
        raise Malformed(f"{path.name} isn't a safetensors file")
    return length


def _tensors(path: Path) -> Mapping[str, Any]:
    length = _header_bytes(path)
    with path.open("rb") as file:
        file.seek(8)
        try:
            header = json.loads(file.read(length))
        except ValueError as err:
            raise Malformed(f"{path.name} isn't a safetensors file") from err
    if not isinstance(header, dict):
        raise Malformed(f"{path.name} isn't a safetensors file")
    tensors = {name: entry for name, entry in header.items() if name != _METADATA}
    if not all(isinstance(one, dict) and "data_offsets" in one for one in tensors.values()):
        raise Malformed(f"{path.name} isn't a safetensors file")
    return tensors
