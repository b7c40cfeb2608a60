"""Bounded reading of untrusted archives, in which every library error becomes a refusal.

On crafted archives, zipfile and tarfile raise a dozen kinds of exceptions, and read and seek as much as a
header tells them to, all while holding the interpreter. A :class:`Window` bounds that, :func:`check_name`
refuses names that are costly to parse, and :func:`behind` turns every error into one kind.
"""

from __future__ import annotations

import errno
import io
import re
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from farm.errors import FarmError

#: Limits on reading one tar's headers: a few hundred bytes, in three reads, per file.
MAX_BYTES = 32 << 20
MAX_READS = 40_000
#: Limit of one header: a name, and other metadata of a file.
MAX_HEADER_BYTES = 64 << 10
#: Entries of all extended headers together (`path=…`, `mtime=…`): a few per file, 10 µs each.
MAX_FIELDS = 60_000
#: CPU time for any archive: several times what the largest accepted one needs.
MAX_CPU_S = 4.0
#: Of a zip's directory, which is read at once: zipfile takes 10 µs for each name, of which there are fewer in
#: any program.
_MAX_DIRECTORY_BYTES = 6 << 20
_MAX_NAMES = 50_000
#: What file systems allow for a path and for a name in it, and more folders than any model has.
_MAX_NAME_BYTES = 1000
_MAX_PART_BYTES = 255
_MAX_PARTS = 32
#: tarfile's pattern for numbers in pax headers takes 19 s for 80,000 digits (CVE-2024-6232).
_LONG_NUMBER = re.compile(rb"\d{256}")


class Malformed(ValueError):
    """The file is malformed, or it would take too long to find out."""


@contextmanager
def behind(kind: type[Malformed] = Malformed) -> Iterator[None]:
    """Convert any exception in the block to ``kind`` with the reason; ``kind`` itself passes through, as does
    what the farm itself refuses.

    A file that can't be read at all isn't malformed: its OSError passes through.

    Raises:
        Malformed, OSError
    """
    try:
        yield
    except (kind, FarmError):
        raise
    except OSError as err:
        # A header may point to an impossible offset; any other errno means that the disk failed.
        if err.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
            raise
        raise kind(_reason(err)) from err
    except Exception as err:
        raise kind(_reason(err)) from err


def _reason(err: Exception) -> str:
    if isinstance(err, RecursionError):
        return "it is nested too deep"
    lines = str(err).strip().splitlines()
    return lines[0][:200] if lines else type(err).__name__


def check_name(name: str) -> None:
    """Refuse a name that no model's file has, before anything parses it.

    Raises:
        Malformed
    """
    raw = name[: _MAX_NAME_BYTES + 1].encode(errors="surrogateescape")
    parts = raw.split(b"/")
    if len(raw) > _MAX_NAME_BYTES or max(map(len, parts)) > _MAX_PART_BYTES:
        raise Malformed(f"{name[:200]!r} is too long for a file name")
    if len(parts) > _MAX_PARTS:
        raise Malformed(f"{name[:200]!r} is nested more than {_MAX_PARTS} folders deep")


class Window(io.RawIOBase):
    """A file for reading headers, with limits on the number and size of reads.

    Parameters:
        max_bytes: limit on all reads together.
        max_read_bytes: limit on one read.
        max_fields: limit on the entries of extended headers.
        max_cpu_s: limit on this thread's time.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        max_bytes: int = MAX_BYTES,
        max_reads: int = MAX_READS,
        max_read_bytes: int = MAX_HEADER_BYTES,
        max_fields: int = MAX_FIELDS,
        max_cpu_s: float = MAX_CPU_S,
    ) -> None:
        self._file = file
        self._bytes_left = max_bytes
        self._reads_left = max_reads
        self._most = max_read_bytes
        self._fields_left = max_fields
        # This thread's CPU time: what other threads do meanwhile isn't the archive's fault.
        self._until_s = time.thread_time() + max_cpu_s

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """Up to this many bytes, without allocating more than the file can fill.

        Raises:
            Malformed: a limit is exceeded.
        """
        at = self._file.tell()
        there = max(self._file.seek(0, io.SEEK_END) - at, 0)
        self._file.seek(at)
        wanted = there if size is None or size < 0 else min(size, there)
        self._bytes_left -= wanted
        self._reads_left -= 1
        if wanted > self._most or self._bytes_left < 0 or self._reads_left < 0:
            raise Malformed("its headers are longer than any model's")
        if time.thread_time() > self._until_s:
            raise Malformed("reading its headers would take too long")
        content = self._file.read(wanted)
        self._fields_left -= content.count(b"=")
        if self._fields_left < 0:
            raise Malformed("its headers have more entries than any model's")
        if _LONG_NUMBER.search(content):
            raise Malformed("a header contains a number with hundreds of digits")
        return content


def zip_names(path: Path) -> list[str]:
    """The names in a zip; empty if the file isn't a zip.

    Raises:
        Malformed
    """
    with behind(), path.open("rb") as file:
        window = Window(file, max_bytes=_MAX_DIRECTORY_BYTES, max_read_bytes=_MAX_DIRECTORY_BYTES)
        if not zipfile.is_zipfile(window):
            return []
        with zipfile.ZipFile(window) as archive:
            names = archive.namelist()
        if len(names) > _MAX_NAMES:
            raise Malformed(f"it contains more than {_MAX_NAMES} files")
        for name in names:
            check_name(name)
        return names
