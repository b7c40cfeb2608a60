"""The store in a folder: a blob is either whole and right, or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from anyio import CapacityLimiter, to_thread

from farm.errors import (
    DigestMismatch,
    EmptyBlob,
    NotFound,
    StorageFull,
    StorageUnavailable,
    TooLarge,
)
from farm.store.base import ASIDE, Stored, StoredFile

_NAME = re.compile(r"[0-9a-f]{64}")


_DIGEST = re.compile(rf"sha256:{_NAME.pattern}")


_CHUNK_BYTES = 1 << 20


#: Kept of a disk, so that garbage collection has room to work when all else is taken.
RESERVE_BYTES = 32 * 2**20


_UPLOAD_THREADS = 8


class LocalStore:
    """Blobs as files below one folder, which API and workers share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"

    @cached_property
    def _disk(self) -> CapacityLimiter:
        """Threads of its own, so that uploads to a slow disk leave those of other requests alone."""
        return CapacityLimiter(_UPLOAD_THREADS)

    def _place(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise NotFound(f"{digest!r} isn't a sha256 digest")
        name = digest.removeprefix("sha256:")
        return self.root / "sha256" / name[:2] / name

    def has(self, digest: str) -> bool:
        return self._place(digest).is_file()

    def path(self, digest: str) -> Path:
        place = self._place(digest)
        if not place.is_file():
            if not (self.root / "sha256").is_dir():
                raise StorageUnavailable(
                    f"the artifact store isn't at {self.root}", hint="is it mounted there?"
                )
            raise NotFound(f"the store has no blob {digest}", hint="upload it: POST /v1/blobs")
        return place

    def try_to_write(self) -> None:
        """Raise what writing would.

        Raises:
            StorageFull, StorageUnavailable
        """
        with self.writing():
            self._incoming.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._incoming) as file:
                file.write(b"x" * 4096)
                file.flush()

    def keep_reserve(self) -> None:
        """Take the reserve of the disk, where there is room for it."""
        with suppress(OSError):  # then there is none: what writes will tell
            self.root.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.root).free < 2 * RESERVE_BYTES:
                return
            with (self.root / "reserve").open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)

    def spend_reserve(self) -> None:
        """Give the reserve back to the disk."""
        with suppress(OSError):
            (self.root / "reserve").unlink(missing_ok=True)

    def identity(self) -> str | None:
        """What tells this store from others, or None where no farm has used it."""
        with self.reading(), suppress(FileNotFoundError):
            return (self.root / "id").read_text().strip() or None
        return None

    def identify(self) -> str:
        """Its identity, given now if it has none.

        Raises:
            StorageFull, StorageUnavailable
        """
        with self.writing():
            self._incoming.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._incoming) as file:
                file.write(f"{uuid4()}\n")
                file.flush()
                os.fchmod(file.fileno(), 0o444)
                with suppress(FileExistsError):
                    os.link(file.name, self.root / "id")  # of two that come at once, one wins
        identity = self.identity()
        if identity is None:
            raise StorageUnavailable(f"the artifact store at {self.root} doesn't keep its identity")
        return identity

    def is_right(self, digest: str) -> bool:
        """Whether a blob's bytes are those that its digest names; reads all of them.

        Raises:
            NotFound, StorageUnavailable
        """
        with self.reading(), self.path(digest).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest

    def condemn(self, digest: str) -> None:
        """Take a damaged blob out of its place, and keep it for somebody to look at."""
        place, damaged = self._place(digest), self.root / "damaged"
        with self.writing(), suppress(FileNotFoundError):
            damaged.mkdir(parents=True, exist_ok=True)
            place.replace(damaged / place.name)

    def take(self, source: Path) -> Stored:
        """Keep a file; it's gone from where it was. On the same file system it isn't even copied.

        Raises:
            StorageFull, StorageUnavailable
        """
        with self.writing():
            try:
                return self._adopt(source)
            except OSError as err:
                if err.errno != errno.EXDEV:
                    raise
        with self._receiving() as blob, source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                blob.write(chunk)
            stored = blob.keep(None)
            source.unlink()
            return stored

    def _adopt(self, source: Path) -> Stored:
        with source.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            size = os.fstat(file.fileno()).st_size
            self._put(source, file, digest)
        return Stored(digest=digest, bytes=size)

    def _put(self, path: Path, file: BinaryIO, digest: str) -> None:
        """Put a whole file in its place; from where it was it's gone."""
        place = self._place(digest)
        os.fsync(file.fileno())
        place.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o444)
        self._renew(path)  # it was written long ago, maybe, and arrives now
        # Over one that is there: these bytes are right, and those may be damaged.
        path.replace(place)

    async def receive(
        self, chunks: AsyncIterator[bytes], *, expected: str | None, max_bytes: int
    ) -> Stored:
        """Write a body to the store as it arrives; a body that breaks off leaves nothing behind.

        Parameters:
            expected: the announced digest, or None.

        Raises:
            DigestMismatch, EmptyBlob, TooLarge, StorageFull, StorageUnavailable
        """
        size, pending = 0, bytearray()
        with self._receiving() as blob:
            # Hashing, writing and fsync take their time, and a disk may hang: not on the event loop.
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLarge(f"a blob may have {max_bytes} bytes at most")
                pending += chunk
                if len(pending) >= _CHUNK_BYTES:
                    await to_thread.run_sync(blob.write, pending, limiter=self._disk)
                    pending = bytearray()
            if size == 0:
                raise EmptyBlob()
            if pending:
                await to_thread.run_sync(blob.write, pending, limiter=self._disk)
            return await to_thread.run_sync(blob.keep, expected, limiter=self._disk)

    def blobs(self) -> Iterator[StoredFile]:
        """Every blob, one folder after the other; those that come or go meanwhile or not."""
        for folder in _entries(self.root / "sha256"):
            if folder.is_dir():
                # File systems and people leave other files there.
                yield from _files(file for file in _entries(folder) if _NAME.fullmatch(file.name))

    def interrupted(self, before: datetime) -> Iterator[StoredFile]:
        """What uploads left behind that broke off with their process, before this time."""
        for file in _files(_entries(self._incoming)):
            if file.put_at < before and not file.path.name.startswith(ASIDE):
                yield file

    def set_aside(self, digest: str) -> StoredFile | None:
        """Take a blob out of its place without deleting it, or None if it isn't there.

        Whoever puts the same blob before that makes the file younger than it was; whoever puts it
        after that puts a file of its own.
        """
        place = self._place(digest)
        aside = self._incoming / f"{ASIDE}{place.name}"
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            place.replace(aside)
        except FileNotFoundError:
            return None
        return next(_files([aside]), None)

    def put_back(self, file: StoredFile) -> None:
        """Put a blob that was set aside back in its place, as if it had been put there now."""
        if self._renew(file.path):
            with suppress(FileNotFoundError):  # another gc was quicker
                file.path.replace(self._place(file.digest))

    def put_all_back(self) -> None:
        """Put back whatever is aside."""
        for file in _files(_entries(self._incoming)):
            if file.path.name.startswith(ASIDE):
                self.put_back(file)

    @staticmethod
    def _renew(file: Path) -> bool:
        """Make a file young, in one step with the look whether it's there."""
        try:
            os.utime(file)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A disk that gives nothing is told as an error of the farm.

        Raises:
            StorageUnavailable
        """
        try:
            yield
        except OSError as err:
            raise StorageUnavailable(f"the artifact store can't be read: {err}") from err

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What goes wrong with the disk is told as an error of the farm.

        Raises:
            StorageFull, StorageUnavailable
        """
        try:
            yield
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull() from err
            raise StorageUnavailable(f"the artifact store can't be written: {err}") from err

    @contextmanager
    def _receiving(self) -> Iterator[_Incoming]:
        with self.writing():
            self._incoming.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._incoming, delete=False) as file:
                blob = _Incoming(store=self, file=file)  # type: ignore[arg-type]
                try:
                    yield blob
                finally:
                    Path(file.name).unlink(missing_ok=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _files(paths: Iterable[Path]) -> Iterator[StoredFile]:
    for path in paths:
        with suppress(FileNotFoundError):  # gone since the folder was listed
            found = path.stat()
            put_at = datetime.fromtimestamp(found.st_mtime, UTC)
            yield StoredFile(path=path, bytes=found.st_size, put_at=put_at)


class _Incoming:
    """A blob on its way in: hashed while it is written, renamed into place when it is whole."""

    def __init__(self, *, store: LocalStore, file: BinaryIO) -> None:
        self._store = store
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, chunk: bytes | bytearray) -> None:
        self._hash.update(chunk)
        self._file.write(chunk)
        self.bytes += len(chunk)

    def keep(self, expected: str | None) -> Stored:
        digest = f"sha256:{self._hash.hexdigest()}"
        if expected is not None and digest != expected:
            raise DigestMismatch(f"announced {expected}, but {digest} arrived; nothing was kept")
        self._file.flush()
        self._store._put(Path(self._file.name), self._file, digest)
        return Stored(digest=digest, bytes=self.bytes)
