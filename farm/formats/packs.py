"""Packs: a model of several files as one, an uncompressed tar.

Equal files make equal packs, whatever their dates and owners. Only packs of regular files below their own
root are read; unpacking can't inflate them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from farm.formats.archives import (
    MAX_BYTES,
    MAX_CPU_S,
    MAX_FIELDS,
    MAX_READS,
    Malformed,
    Window,
    behind,
    check_name,
)

_CHUNK_BYTES = 1 << 20
_MAGIC_AT = 257
_MAGIC = b"ustar"
_END = bytes(2 * tarfile.BLOCKSIZE)
_MAX_FILES = 10_000
_MAX_FOLDERS = 10_000
#: Entries that tarfile copies to every file that follows.
_MAX_GLOBAL_FIELDS = 32


class MalformedPack(Malformed):
    """The archive is damaged, or contains something not allowed in a pack."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Files to be packed."""

    name: str
    files: Mapping[str, Path]  #: name in the pack → file

    @property
    def total_bytes(self) -> int:
        """Of the tar."""
        sizes = [path.stat().st_size for path in self.files.values()]
        headers = [len(_header(name, 0)) for name in self.files]
        return sum(headers) + sum(size + _padding(size) for size in sizes) + len(_END)

    def chunks(self) -> Iterator[bytes]:
        """The tar, in small chunks; equal files give equal bytes."""
        for name, path in sorted(self.files.items()):
            size = path.stat().st_size
            yield _header(name, size)
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
            yield bytes(_padding(size))
        yield _END

    def write(self, target: Path) -> None:
        with target.open("wb") as file:
            file.writelines(self.chunks())


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a pack."""

    name: str
    offset: int  #: of its first byte in the pack
    bytes: int


def is_pack(path: Path) -> bool:
    """Whether a file is a tar, by its bytes."""
    with path.open("rb") as file:
        file.seek(_MAGIC_AT)
        return file.read(len(_MAGIC)) == _MAGIC


def members(path: Path, *, most_files: int = _MAX_FILES) -> dict[str, Member]:
    """The files in a pack, by name.

    Parameters:
        most_files: it may hold; the limits on reading grow with it.

    Raises:
        MalformedPack: it is damaged, or holds links, devices, sparse files or paths out of it.
    """
    found: dict[str, Member] = {}
    above: set[str] = set()
    size = path.stat().st_size
    more = max(1, most_files // _MAX_FILES)
    with (
        behind(MalformedPack),
        path.open("rb") as file,
        tarfile.open(
            fileobj=Window(
                file,
                max_bytes=more * MAX_BYTES,
                max_reads=more * MAX_READS,
                max_fields=more * MAX_FIELDS,
                max_cpu_s=more * MAX_CPU_S,
            ),
            mode="r:",
        ) as archive,
    ):
        folders = 0
        for entry in archive:
            if len(archive.pax_headers) > _MAX_GLOBAL_FIELDS:
                raise MalformedPack(f"it has more than {_MAX_GLOBAL_FIELDS} global header fields")
            if entry.isdir():
                folders += 1
                if folders > _MAX_FOLDERS:
                    raise MalformedPack(f"it contains more than {_MAX_FOLDERS} folders")
                continue
            member = _member(entry)
            if member.name in found:
                raise MalformedPack(f"it contains {member.name!r} twice")
            if not 0 <= member.offset <= member.offset + member.bytes <= size:
                raise MalformedPack(f"it ends within {member.name!r}")
            found[member.name] = member
            if len(found) > most_files:
                raise MalformedPack(f"it contains more than {most_files} files")
    for name in found:
        folder = name.rpartition("/")[0]
        while folder and folder not in above:  # else already checked for another file
            above.add(folder)
            if folder in found:
                raise MalformedPack(f"it contains {name!r} below a file")
            folder = folder.rpartition("/")[0]
    return found


def unpack(path: Path, folder: Path) -> None:
    """Write a pack's files below a folder.

    Raises:
        MalformedPack
    """
    with path.open("rb") as file:
        for member in members(path).values():
            target = folder / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.seek(member.offset)
            with target.open("xb") as made:
                left = member.bytes
                while left:
                    chunk = file.read(min(left, _CHUNK_BYTES))
                    made.write(chunk)
                    left -= len(chunk)


def one_ending(names: Iterator[str] | Mapping[str, object], suffix: str) -> str:
    """The one name with this suffix.

    Raises:
        MalformedPack: there is none, or several.
    """
    found = [name for name in names if name.lower().endswith(suffix)]
    if len(found) != 1:
        told = ", ".join(sorted(found)[:5]) or "none"
        raise MalformedPack(f"it must contain one {suffix} file, and there is {told}")
    return found[0]


def _member(entry: tarfile.TarInfo) -> Member:
    try:
        check_name(entry.name)
    except Malformed as err:
        raise MalformedPack(str(err)) from None
    name = PurePosixPath(entry.name)
    if not entry.isreg() or entry.issparse():
        raise MalformedPack(f"{entry.name[:200]!r} isn't a regular file")
    if name.is_absolute() or ".." in name.parts or not name.parts or "\0" in entry.name:
        raise MalformedPack(f"{entry.name[:200]!r} leads outside it")
    return Member(name=str(name), offset=entry.offset_data, bytes=entry.size)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    entry.mode = 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
