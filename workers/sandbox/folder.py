"""Checks what a job leaves in its work folder as untrusted: regular files inside it, no links."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class NotAnOutput(Exception):
    """The path isn't a file that the job made in its folder."""


def checked(path: str, workdir: Path) -> Path:
    """Return the path of a file in the work folder, if it isn't a symbolic link and has no other hard link.

    Call it once the job's processes have ended: one still running could change the file afterwards.

    Raises:
        NotAnOutput
    """
    at = Path(path)
    parts = at.relative_to(workdir).parts if at.is_relative_to(workdir) else ()
    if not parts or "\0" in path or any(part in ("..", ".") for part in parts):
        raise NotAnOutput("a file that isn't below the stage's work folder")
    folder = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            below = os.open(part, flags, dir_fd=folder)
            os.close(folder)
            folder = below
        found = os.lstat(parts[-1], dir_fd=folder)
        if not stat.S_ISREG(found.st_mode):
            raise NotAnOutput("a file that isn't one")
        if found.st_nlink != 1 and found.st_nlink != _names(found, workdir):
            raise NotAnOutput("a file that is elsewhere, too")
        if found.st_uid != os.geteuid():
            os.chown(parts[-1], os.geteuid(), os.getegid(), dir_fd=folder, follow_symlinks=False)
        os.chmod(parts[-1], 0o600, dir_fd=folder)
    except OSError as err:
        raise NotAnOutput(f"a file that can't be had: {err.strerror}") from err
    finally:
        os.close(folder)
    return at


@contextmanager
def temporary(home: Path, prefix: str) -> Iterator[Path]:
    """A new folder beside the jobs' of this home, removed at the end whatever is in it."""
    base = home / "work"
    base.mkdir(parents=True, exist_ok=True)
    at = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
    try:
        yield at
    finally:
        remove(at)


def _names(file: os.stat_result, folder: Path) -> int:
    """Count a file's names in a folder."""
    found, folders = 0, [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif os.path.samestat(entry.stat(follow_symlinks=False), file):
                    found += 1
    return found


def remove(folder: Path) -> None:
    """Delete a folder and its contents, at any depth and with any permissions.

    What can't be deleted stays.
    """
    with suppress(OSError):
        folder.rmdir()  # mostly the outputs have been moved out already, and this is cheaper than looking
        return
    with suppress(OSError):
        _empty(folder)
        folder.rmdir()


def _empty(folder: Path) -> None:
    """Without recursion: folders may be nested deeper than Python's stack or a path's length allows."""
    number = 0
    while True:
        folders = _without_files(folder)
        if not folders:
            return
        for one in folders:
            for below in _without_files(one):
                number += 1
                below.rename(folder / f"{number}-{os.urandom(8).hex()}")
            one.rmdir()


def _without_files(folder: Path) -> list[Path]:
    """Delete a folder's files; return the folders in it."""
    folder.chmod(0o700)
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                Path(entry.path).unlink()
    return folders
