"""A file that grows, and is on the disk soon after its last byte."""

from __future__ import annotations

import os
from typing import BinaryIO, Self

from farm.client.aside import Aside

#: A disk takes this in a fraction of a second; a call to it isn't felt after so much.
_AHEAD_BYTES = 64 << 20


class Durable:
    """Writes to a file, and has the disk store what was written meanwhile, in a thread of its own.

    Otherwise all of it would be stored after the last byte, while the network idles.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unstored = 0
        self._storing = Aside("fsync")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self._storing.close()

    def write(self, chunk: bytes) -> None:
        """Append it.

        Raises:
            OSError: also if the disk couldn't store what was written before.
        """
        self._file.write(chunk)
        self._unstored += len(chunk)
        if self._unstored >= _AHEAD_BYTES and self._storing.is_idle:
            self._storing.start(os.fsync, self._file.fileno())
            self._unstored = 0

    def store(self) -> None:
        """Return when all of it is on the disk.

        Raises:
            OSError
        """
        self._file.flush()
        # Linux reports what it failed to store once: the next fsync would succeed.
        self._storing.wait()
        os.fsync(self._file.fileno())
