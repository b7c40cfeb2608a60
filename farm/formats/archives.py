"""The door through which libraries read strangers' archives: bounded, and every error theirs a refusal.

zipfile and tarfile raise a dozen kinds on archives that were made by hand, read as many bytes as a
header says, go back in the file as often as it says, and do so while they hold Python's interpreter. A
:class:`Window` ends that, :func:`check_name` refuses names that are costly to take apart, and
:func:`behind` gives all of it one name.
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

#: Of the headers of one tar, and how often they are read: some hundred bytes, in three reads, for each file.
MAX_BYTES = 32 << 20
MAX_READS = 40_000
#: Of one header: a name, and what else a packer writes down of a file.
MAX_HEADER_BYTES = 64 << 10
#: Entries of all extended headers together (`path=…`, `mtime=…`): some for each file. One takes 10 µs.
_MAX_FIELDS = 60_000
#: Of the processor's time, whatever an archive is made of: some times what the largest that is taken needs.
_MAX_CPU_S = 4.0
#: Of a zip's directory, which is read at once: zipfile takes 10 µs for each name, of which there are fewer in
#: any program.
_MAX_DIRECTORY_BYTES = 6 << 20
_MAX_NAMES = 50_000
#: What file systems take of a path and of a name in it, and more folders than any model lies in.
_MAX_NAME_BYTES = 1000
_MAX_PART_BYTES = 255
_MAX_PARTS = 32
#: tarfile seeks a number in pax headers by a pattern that takes 19 s for 80,000 digits (CVE-2024-6232).
_LONG_NUMBER = re.compile(rb"\d{256}")


class Malformed(ValueError):
    """The file isn't what readers of its format take, or it would take long to find that it is."""


@contextmanager
def behind(kind: type[Malformed] = Malformed) -> Iterator[None]:
    """Whatever is raised within becomes ``kind`` with the reason, but for refusals of that kind.

    A file that can't be read at all is no fault of what is in it: its error passes.

    Raises:
        Malformed, OSError
    """
    try:
        yield
    except kind:
        raise
    except OSError as err:
        # A header may send a reader to where there can't be a file; else the disk has failed.
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
    """Refuse a name that no model's file has, before anything takes it apart.

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
    """A file as a reader of its headers may see it: so many reads, of so many bytes, and no more.

    Parameters:
        max_bytes: of all reads together.
        max_read_bytes: of one.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        max_bytes: int = MAX_BYTES,
        max_reads: int = MAX_READS,
        max_read_bytes: int = MAX_HEADER_BYTES,
    ) -> None:
        self._file = file
        self._bytes_left = max_bytes
        self._reads_left = max_reads
        self._most = max_read_bytes
        self._fields_left = _MAX_FIELDS
        # Of this thread, which is the reader's: what others do meanwhile is no fault of the archive's.
        self._until_s = time.thread_time() + _MAX_CPU_S

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1) -> bytes:
        """Up to so many bytes, without asking for memory that the file can't fill.

        Raises:
            Malformed: it is too much.
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
    """The names in a zip; empty where the file is none.

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
