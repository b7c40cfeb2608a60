"""Copies of a remote store's blobs on this machine: bounded, and shared by its processes.

A copy is verified before it gets its name, ``sha256/ab/NAME``. Until then it is ``sha256/ab/NAME.partial``,
from which the next download goes on. Whoever reads a copy holds a shared lock on it, or has given it another
name; the least recently used of the others go first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from pathlib import Path

from farm.errors import BlobDamaged, StorageFull, StorageUnavailable
from farm.store import digests

_PARTIAL = ".partial"
#: A download that nobody has gone on with for this long won't be.
_PARTIAL_LASTS_S = 24 * 3600.0
_READ_BYTES = 1 << 20
#: Other bytes may come of a damaged blob, and of a broken way to it.
_TRIES = 2
#: The share of the disk that copies may take, unless the settings say how much.
_SHARE = 5

#: A blob's bytes from a position on. Lost connections are its own affair.
Read = Callable[[int], Iterator[bytes]]


@dataclass(frozen=True, kw_only=True)
class _Copy:
    path: Path
    bytes: int
    used_at: float


class Cache:
    """Copies in one folder.

    Parameters:
        most_bytes: what they may take together; None for a fifth of the disk. What is being read stays even
            if it takes more.
    """

    def __init__(self, folder: Path, *, most_bytes: int | None = None) -> None:
        self._folder = folder
        self._most = most_bytes

    @property
    def address(self) -> str:
        return str(self._folder)

    @contextmanager
    def copy(self, digest: str, size_of: Callable[[], int], read: Read) -> Iterator[Path]:
        """A copy of a blob, downloaded unless it is here; it stays at least until the block ends.

        Parameters:
            size_of: the blob's size in bytes, asked for if it isn't here.

        Raises:
            NotFound, StorageUnavailable: by ``size_of`` and ``read``; what has come is kept.
            BlobDamaged: other bytes came, again and again.
            StorageFull
        """
        path = self._place(digest)
        with self._disk():
            file = self._held(path)
            while file is None:
                self._download(path, digest, size_of(), read)
                file = self._held(path)
        with file:
            yield path

    def has(self, digest: str) -> bool:
        return self._place(digest).is_file()

    @contextmanager
    def held(self, digest: str) -> Iterator[Path | None]:
        """A copy that is here already, or None."""
        path = self._place(digest)
        with self._disk():
            file = self._held(path)
        if file is None:
            yield None
            return
        with file:
            yield path

    def adopt(self, source: Path, digest: str) -> None:
        """Move a file with a blob's bytes here, or delete it if that can't be done. Never raises."""
        path = self._place(digest)
        with suppress(OSError):
            found = source.stat()
            # The owner of a file can always change it: a job that ran as another user keeps none here.
            if found.st_uid == os.geteuid() and found.st_nlink == 1 and not path.exists():
                self._make_room(found.st_size)
                path.parent.mkdir(parents=True, exist_ok=True)
                source.chmod(0o444)
                os.utime(source)
                source.replace(path)
                return
        with suppress(OSError):
            source.unlink(missing_ok=True)

    def drop_wrong(self, digest: str) -> bool:
        """Delete a copy whose bytes are wrong; return whether they were."""
        with self.held(digest) as path:
            if path is None or digests.of_path(path) == digest:
                return False
            path.unlink(missing_ok=True)
            return True

    def _place(self, digest: str) -> Path:
        name = digests.name_of(digest)
        return self._folder / "sha256" / name[:2] / name

    def _held(self, path: Path) -> BufferedReader | None:
        """The copy, locked against its removal; None if there is none."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not _is_at(path, file.fileno()):  # removed before it was locked
            file.close()
            return None
        with suppress(OSError):
            os.utime(path)
        return file

    def _download(self, path: Path, digest: str, size: int, read: Read) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}{_PARTIAL}")
        with _appended(partial) as file:
            if path.exists():  # another process was quicker
                partial.unlink(missing_ok=True)
                return
            self._make_room(size)
            for _ in range(_TRIES):
                if _complete(file, size, read) == digest:
                    os.fsync(file.fileno())
                    partial.chmod(0o444)
                    partial.replace(path)
                    return
                file.truncate(0)  # it began as something else, or was damaged
            partial.unlink(missing_ok=True)
        raise BlobDamaged(f"other bytes than those of {digest} came from the artifact store")

    def _make_room(self, size: int) -> None:
        """Remove what was used least recently until there is room for so many bytes more."""
        self._folder.mkdir(parents=True, exist_ok=True)
        most = self._most
        if most is None:
            most = shutil.disk_usage(self._folder).total // _SHARE
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            copies = sorted(self._copies(), key=lambda one: one.used_at)
            too_much = sum(one.bytes for one in copies) + size - most
            forgotten = time.time() - _PARTIAL_LASTS_S
            for one in copies:
                is_partial = one.path.name.endswith(_PARTIAL)
                if is_partial and one.used_at > forgotten:
                    continue
                if (too_much > 0 or is_partial) and _removed(one.path):
                    too_much -= one.bytes

    def _copies(self) -> Iterator[_Copy]:
        for path in self._folder.glob("sha256/*/*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                yield _Copy(path=path, bytes=found.st_size, used_at=found.st_mtime)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"no space for a copy of a blob in {self._folder}",
                    hint="free space there, or set FARM_CACHE_BYTES lower on this machine",
                ) from err
            raise StorageUnavailable(f"copies of blobs can't be kept: {err}") from err


def _complete(file: BufferedRandom, size: int, read: Read) -> str:
    """Append the rest of a blob; return the digest of all of it."""
    found, have = hashlib.sha256(), 0
    file.seek(0)
    while chunk := file.read(_READ_BYTES):
        found.update(chunk)
        have += len(chunk)
    if have < size:
        for chunk in read(have):
            file.write(chunk)
            found.update(chunk)
            have += len(chunk)
            if have > size:
                break
    file.flush()
    return f"sha256:{found.hexdigest()}"


@contextmanager
def _appended(partial: Path) -> Iterator[BufferedRandom]:
    """The partial file, for one download at a time."""
    while True:
        with partial.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(
                partial, file.fileno()
            ):  # else it has become a copy meanwhile, or was removed
                yield file
                return


def _removed(path: Path) -> bool:
    """Remove a file that nobody reads; return whether it is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink > 1:  # a running job's input
                return False
            path.unlink()
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
