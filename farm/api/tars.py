"""Tar archives as responses, written while they are sent: files of the store in them are never copied."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastapi.responses import StreamingResponse

_CHUNK_BYTES = 2**20
_END = bytes(2 * tarfile.BLOCKSIZE)


class TarResponse(StreamingResponse):
    """Files by their names in the archive: bytes, or a file's path and its size."""

    def __init__(
        self, files: Mapping[str, bytes | tuple[Path, int]], *, etag: str, file_name: str
    ) -> None:
        members = [(_header(name, _size(one)), one) for name, one in files.items()]
        padded = (len(header) + _size(one) + _padding(_size(one)) for header, one in members)
        super().__init__(
            _chunks(members),
            headers={
                "ETag": etag,
                "Content-Length": str(sum(padded) + len(_END)),
                "Content-Disposition": f'attachment; filename="{file_name}"',
            },
            media_type="application/x-tar",
        )


def _chunks(members: list[tuple[bytes, bytes | tuple[Path, int]]]) -> Iterator[bytes]:
    for header, content in members:
        yield header
        if isinstance(content, bytes):
            yield content
        else:
            path, size = content
            with path.open("rb") as file:
                yield from _read(file, size)
        yield bytes(_padding(_size(content)))
    yield _END


def _read(file: io.BufferedReader, size: int) -> Iterator[bytes]:
    """Exactly as many bytes as the header says.

    Raises:
        EOFError: the file has become shorter; the connection ends before the archive does.
    """
    while size:
        chunk = file.read(min(size, _CHUNK_BYTES))
        if not chunk:
            raise EOFError(f"{file.name} has become shorter")
        size -= len(chunk)
        yield chunk


def _header(name: str, size: int) -> bytes:
    # Equal files make equal archives: no dates, no owners.
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _size(content: bytes | tuple[Path, int]) -> int:
    return len(content) if isinstance(content, bytes) else content[1]


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
