"""A partial download: locked for this process, and never reached through a symlink."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from farm.errors import Conflict


@contextmanager
def held(path: Path) -> Iterator[Path]:
    """The partial file's path, locked until the block ends.

    Raises:
        Conflict: another process is writing it.
    """
    import fcntl

    partial = path.with_name(f"{path.name}.partial")
    while True:
        if partial.is_symlink():
            partial.unlink()
        with appending(partial) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(
                    f"another pull is writing {partial}", hint="wait for it, then pull again"
                ) from None
            # Another pull may have finished and renamed the file we opened.
            if _is_same(file, partial):
                yield partial
                return


def appending(partial: Path) -> BinaryIO:
    """The file, created if missing. A symlink isn't followed: it raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(os.open(partial, flags, 0o666), "ab")


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def truncate(partial: Path) -> None:
    """Empty the file."""
    with appending(partial) as file:
        file.truncate(0)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that has all of its content as soon as it has its name."""
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        new = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
