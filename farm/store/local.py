"""A store in a folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from anyio import CapacityLimiter, to_thread

from farm.errors import EmptyBlob, NotFound, StorageFull, StorageUnavailable, TooLarge
from farm.store import digests
from farm.store.base import RESERVE_BYTES, Interrupted, Stored, StoredFile

_ASIDE = "aside-"
_CHUNK_BYTES = 1 << 20
_UPLOAD_THREADS = 8


class LocalStore:
    """Blobs as files below one folder, shared by the API and the workers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"

    @property
    def address(self) -> str:
        return str(self.root)

    @cached_property
    def _disk(self) -> CapacityLimiter:
        """Separate threads, so that uploads to a slow disk don't take those of other requests."""
        return CapacityLimiter(_UPLOAD_THREADS)

    def _place(self, digest: str) -> Path:
        name = digests.name_of(digest)
        return self.root / "sha256" / name[:2] / name

    def has(self, digest: str) -> bool:
        with self._reading(), suppress(NotFound):  # it isn't a digest
            return self._place(digest).is_file()
        return False

    def place(self, digest: str) -> Path:
        place = self._place(digest)
        with self._reading():
            if not place.is_file():
                if not (self.root / "sha256").is_dir():
                    raise StorageUnavailable(
                        f"the artifact store isn't at {self.root}", hint="is it mounted there?"
                    )
                raise digests.absent(digest)
        return place

    @contextmanager
    def local(self, digest: str) -> Iterator[Path]:
        yield self.place(digest)

    def read(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        with self._reading(), self._opened(digest) as file:
            file.seek(start)
            left = sys.maxsize if stop is None else stop - start
            while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    def _opened(self, digest: str) -> BufferedReader:
        try:
            return self.place(digest).open("rb")
        except FileNotFoundError:
            raise NotFound(f"the store has lost the blob {digest} just now") from None

    def link(self, digest: str, *, lasts_s: float) -> None:
        del lasts_s
        self.place(digest)

    def try_to_write(self) -> None:
        with self._writing():
            self._incoming.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._incoming) as file:
                file.write(b"x" * 4096)
                file.flush()

    def free_bytes(self) -> int | None:
        with self._reading():
            return shutil.disk_usage(self.root).free

    def keep_reserve(self) -> None:
        with suppress(OSError):  # then there is none: writing calls will report it
            self.root.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.root).free < 2 * RESERVE_BYTES:
                return
            with (self.root / "reserve").open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)

    def spend_reserve(self) -> None:
        with suppress(OSError):
            (self.root / "reserve").unlink(missing_ok=True)

    def identity(self) -> str | None:
        with self._reading(), suppress(FileNotFoundError):
            return (self.root / "id").read_text().strip() or None
        return None

    def identify(self, identity: str | None = None) -> str:
        with self._writing():
            self._incoming.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._incoming) as file:
                file.write(f"{identity or uuid4()}\n")
                file.flush()
                os.fchmod(file.fileno(), 0o444)
                with suppress(FileExistsError):
                    os.link(file.name, self.root / "id")  # of concurrent callers, one wins
        kept = self.identity()
        if kept is None:
            raise StorageUnavailable(
                f"the artifact store at {self.root} didn't keep its identity file"
            )
        return kept

    def is_right(self, digest: str) -> bool:
        with self._reading(), self._opened(digest) as file:
            return digests.of_file(file) == digest

    def drop_wrong_copy(self, digest: str) -> bool:
        del digest
        return False  # its files are the blobs themselves

    def heal(self, digest: str) -> bool:
        del digest
        return False  # there is no other copy

    def condemn(self, digest: str) -> None:
        place, damaged = self._place(digest), self.root / "damaged"
        with self._writing(), suppress(FileNotFoundError):
            damaged.mkdir(parents=True, exist_ok=True)
            place.replace(damaged / place.name)

    def take(self, source: Path, *, expected: str | None = None) -> Stored:
        with self._writing():  # on the same file system nothing is copied
            try:
                return self._adopt(source, expected)
            except OSError as err:
                if err.errno != errno.EXDEV:
                    raise
        with self._receiving() as blob, source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                blob.write(chunk)
            stored = blob.keep(expected)
            source.unlink()
            return stored

    def _adopt(self, source: Path, expected: str | None) -> Stored:
        with source.open("rb") as file:
            digest = digests.of_file(file)
            digests.check(digest, expected)
            size = os.fstat(file.fileno()).st_size
            self._put(source, file, digest)
        return Stored(digest=digest, bytes=size)

    def _put(self, path: Path, file: BinaryIO, digest: str) -> None:
        """Move a complete file into place."""
        place = self._place(digest)
        os.fsync(file.fileno())
        if not place.parent.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            _settle(place.parent.parent)
        path.chmod(0o444)
        self._renew(path)  # it may have been written long ago: its age counts from now
        # Replace an existing one: these bytes are correct, those may be damaged.
        path.replace(place)
        _settle(place.parent)

    async def receive(
        self, chunks: AsyncIterator[bytes], *, expected: str | None, max_bytes: int
    ) -> Stored:
        size, pending = 0, bytearray()
        with self._receiving() as blob:
            # Hashing, writing and fsync take time, and a disk may hang: keep them off the event loop.
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLarge(f"blobs are limited to {max_bytes} bytes")
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
        with self._reading():
            for folder in _entries(self.root / "sha256"):
                if folder.is_dir():
                    # Skip stray files that file systems and people leave there.
                    for file, found in _found(
                        f for f in _entries(folder) if digests.NAME.fullmatch(f.name)
                    ):
                        yield _stored(file.name, found)

    def find(self, digest: str) -> StoredFile | None:
        with self._reading(), suppress(NotFound):  # it isn't a digest
            for file, found in _found([self._place(digest)]):
                return _stored(file.name, found)
        return None

    def interrupted(self, before: datetime) -> Iterator[Interrupted]:
        with self._reading():
            for file, found in _found(_entries(self._incoming)):
                put_at = _time(found)
                if put_at < before and not file.name.startswith(_ASIDE):
                    yield Interrupted(name=file.name, bytes=found.st_size, put_at=put_at)

    def delete_upload(self, upload: Interrupted) -> None:
        with self._writing():
            (self._incoming / upload.name).unlink(missing_ok=True)

    def set_aside(self, digest: str) -> StoredFile | None:
        place = self._place(digest)
        aside = self._aside(digest)
        with self._writing(), suppress(FileNotFoundError):
            self._incoming.mkdir(parents=True, exist_ok=True)
            place.replace(aside)
            return _stored(place.name, aside.stat())
        return None

    def put_back(self, file: StoredFile) -> None:
        aside = self._aside(file.digest)
        with self._writing(), suppress(FileNotFoundError):  # another gc was quicker
            if self._renew(aside):
                aside.replace(self._place(file.digest))

    def put_all_back(self) -> None:
        with self._writing():
            for file, found in _found(_entries(self._incoming)):
                if file.name.startswith(_ASIDE):
                    self.put_back(_stored(file.name.removeprefix(_ASIDE), found))

    def delete(self, file: StoredFile) -> bool:
        with self._writing(), suppress(FileNotFoundError):  # another gc has put it back
            self._aside(file.digest).unlink()
            return True
        return False

    def _aside(self, digest: str) -> Path:
        return self._incoming / f"{_ASIDE}{self._place(digest).name}"

    @staticmethod
    def _renew(file: Path) -> bool:
        """Renew a file's time, atomically with checking that it exists."""
        try:
            os.utime(file)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Convert the disk's read errors to the farm's.

        Raises:
            StorageUnavailable
        """
        try:
            yield
        except OSError as err:
            raise StorageUnavailable(f"the artifact store can't be read: {err}") from err

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Convert the disk's write errors to the farm's.

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
        with self._writing():
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


def _found(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in paths:
        with suppress(FileNotFoundError):  # gone since the folder was listed
            yield path, path.stat()


def _settle(folder: Path) -> None:
    """Have the disk keep the names in a folder: a file that it keeps may have none after a power cut.

    Some network file systems can't, and refuse.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _stored(name: str, found: os.stat_result) -> StoredFile:
    return StoredFile(digest=f"sha256:{name}", bytes=found.st_size, put_at=_time(found))


def _time(found: os.stat_result) -> datetime:
    return datetime.fromtimestamp(found.st_mtime, UTC)


class _Incoming:
    """An incoming blob: hashed while it is written, renamed into place when complete."""

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
        digests.check(digest, expected)
        self._file.flush()
        self._store._put(Path(self._file.name), self._file, digest)
        return Stored(digest=digest, bytes=self.bytes)
