"""The door through which libraries read strangers' archives: bounded, and every error theirs a refusal.

zipfile and tarfile raise a dozen kinds on archives that were made by hand, read as many bytes as a
header says, and go back in the file as often as it says. A :class:`Window` ends that, and
:func:`behind` gives all of it one name.
"""

from __future__ import annotations

import errno
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

#: Of the headers and the directory of one archive: some hundred bytes for each file in it.
MAX_BYTES = 64 << 20
MAX_READS = 200_000
_MAX_NAMES = 200_000
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


class Window(io.RawIOBase):
    """A file as a reader of its headers may see it: so many reads, of so many bytes, and no more."""

    def __init__(
        self, file: BinaryIO, *, max_bytes: int = MAX_BYTES, max_reads: int = MAX_READS
    ) -> None:
        self._file = file
        self._bytes_left = max_bytes
        self._reads_left = max_reads

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
        if self._bytes_left < 0 or self._reads_left < 0:
            raise Malformed("its headers are longer than those of any model")
        content = self._file.read(wanted)
        if _LONG_NUMBER.search(content):
            raise Malformed("a header holds a number of hundreds of digits")
        return content


def zip_names(path: Path) -> list[str]:
    """The names in a zip; empty where the file is none.

    Raises:
        Malformed
    """
    with behind(), path.open("rb") as file:
        window = Window(file)
        if not zipfile.is_zipfile(window):
            return []
        with zipfile.ZipFile(window) as archive:
            names = archive.namelist()
        if len(names) > _MAX_NAMES:
            raise Malformed(f"it holds more than {_MAX_NAMES} files")
        return names
