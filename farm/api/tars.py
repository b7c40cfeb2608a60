"""Tar archives as responses, written while they are sent: files of the store in them are never copied."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fastapi.responses import StreamingResponse

_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A file that is read while it is sent."""

    read: Callable[[], Iterator[bytes]]
    bytes: int


class TarResponse(StreamingResponse):
    """Files by their names in the archive."""

    def __init__(self, files: Mapping[str, bytes | Streamed], *, etag: str, file_name: str) -> None:
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


def _chunks(members: list[tuple[bytes, bytes | Streamed]]) -> Iterator[bytes]:
    for header, content in members:
        yield header
        if isinstance(content, bytes):
            yield content
        else:
            yield from _read(content)
        yield bytes(_padding(_size(content)))
    yield _END


def _read(file: Streamed) -> Iterator[bytes]:
    """Exactly as many bytes as the header says.

    Raises:
        EOFError: there are fewer; the connection ends before the archive does.
    """
    left = file.bytes
    for chunk in file.read():
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return
    if left:
        raise EOFError(f"{left} bytes are missing")


def _header(name: str, size: int) -> bytes:
    # Equal files make equal archives: no dates, no owners.
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _size(content: bytes | Streamed) -> int:
    return len(content) if isinstance(content, bytes) else content.bytes


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
