"""Uploads in several requests: files that grow until they are a blob.

A file's length is how far its upload came, whichever of the API's processes takes the next part. Nothing is
held in memory, and what is left for long is removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from io import BufferedRandom
from pathlib import Path
from typing import Protocol

from anyio import CapacityLimiter, to_thread

from farm.errors import (
    Busy,
    ChunkOutOfOrder,
    DigestMismatch,
    StorageFull,
    StorageUnavailable,
    TooLarge,
    TooMany,
    UploadUnknown,
)
from farm.specs import repositories
from farm.store.base import Store, Stored

_ID = re.compile(r"[0-9a-f]{32}")
_CHUNK_BYTES = 1 << 20
_THREADS = 8
#: How long an upload may rest.
LASTS_S = 24 * 3600.0
#: Uploads that may be open at once, of one client and of all.
_MOST_OF_ONE, _MOST_OF_ALL = 256, 4096


class Holds(Protocol):
    """What counts an upload's bytes: ``farm.store.held.Hold``."""

    def through(self, chunks: AsyncIterator[bytes], *, start: int = 0) -> AsyncIterator[bytes]: ...

    async def rest(self, size: int) -> None: ...


class Sessions:
    """Open uploads, in one folder."""

    def __init__(self, folder: Path, store: Store, *, max_bytes: int) -> None:
        self._folder = folder
        self._store = store
        self._max_bytes = max_bytes

    @cached_property
    def _disk(self) -> CapacityLimiter:
        return CapacityLimiter(_THREADS)

    def begin(self, repository: str, client: str) -> str:
        """Begin an upload; return its id, which nobody can guess.

        Raises:
            TooMany, Busy: too many are open.
            StorageFull, StorageUnavailable
        """
        with _writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self.expire()
            mine = f"{_short(client)}-"
            opened = [file.name for file in self._folder.iterdir()]
            if sum(name.startswith(mine) for name in opened) >= _MOST_OF_ONE:
                raise TooMany(f"{_MOST_OF_ONE} of your uploads are open: end some of them")
            if len(opened) >= _MOST_OF_ALL:
                raise Busy("too many uploads are open")
            upload = secrets.token_hex(16)
            (self._folder / f"{mine}{_short(repository)}-{upload}").touch(exist_ok=False)
        return upload

    def expire(self) -> None:
        """Drop uploads that have rested for long.

        Raises:
            StorageUnavailable
        """
        oldest = time.time() - LASTS_S
        with _writing(), suppress(FileNotFoundError):  # nobody ever began one
            for file in self._folder.iterdir():
                with suppress(FileNotFoundError):  # another process was quicker
                    if file.stat().st_mtime < oldest:
                        file.unlink()

    def _file(self, repository: str, upload: str) -> Path:
        if _ID.fullmatch(upload):
            found = list(self._folder.glob(f"*-{_short(repository)}-{upload}"))
            if found:
                return found[0]
        raise UploadUnknown(f"{repository} has no upload {upload[:40]!r}")

    def bytes_of(self, repository: str, upload: str) -> int:
        """How many bytes of an upload are there.

        Raises:
            UploadUnknown
        """
        with self._known(repository, upload):
            return self._file(repository, upload).stat().st_size

    def end(self, repository: str, upload: str) -> None:
        """Drop an upload.

        Raises:
            UploadUnknown
        """
        with self._known(repository, upload):
            self._file(repository, upload).unlink()

    async def append(
        self,
        repository: str,
        upload: str,
        chunks: AsyncIterator[bytes],
        *,
        start: int | None,
        hold: Holds | None = None,
    ) -> int:
        """Add bytes to an upload; return how many it has now.

        Parameters:
            start: where these begin, if the client says so.
            hold: takes the room for them.

        Raises:
            UploadUnknown, TooLarge, UploadsUnused, Busy, StorageFull, StorageUnavailable
            ChunkOutOfOrder: they begin elsewhere than the upload ends.
        """
        with self._opened(repository, upload) as file:
            size = file.seek(0, os.SEEK_END)
            if start is not None and start != size:
                raise ChunkOutOfOrder(f"the upload has {size} bytes, the chunk begins at {start}")
            pending = bytearray()
            if hold is not None:
                chunks = hold.through(chunks, start=size)
            # Bytes that came before a connection broke stay: the client asks how many, and goes on there.
            try:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise TooLarge(f"blobs are limited to {self._max_bytes} bytes")
                    pending += chunk
                    if len(pending) >= _CHUNK_BYTES:
                        await to_thread.run_sync(file.write, pending, limiter=self._disk)
                        pending = bytearray()
            finally:
                if pending:
                    file.write(pending)
                file.flush()
                if hold is not None:
                    # While nobody else may add to it.
                    await hold.rest(file.tell())
            return size

    def finish(self, repository: str, upload: str, digest: str) -> Stored:
        """Make an upload a blob of the store.

        Parameters:
            digest: its sha256 or sha512.

        Raises:
            UploadUnknown, Busy, StorageFull, StorageUnavailable
            DigestMismatch: the upload ends here; nothing was stored.
        """
        with self._opened(repository, upload) as file:
            path = self._file(repository, upload)
            try:
                if repositories.is_sha512(digest):
                    _check_sha512(file, digest)
                    return self._store.take(path)
                return self._store.take(path, expected=digest)
            except DigestMismatch:
                path.unlink()
                raise

    @contextmanager
    def _known(self, repository: str, upload: str) -> Iterator[None]:
        with _writing():
            try:
                yield
            except FileNotFoundError:
                raise UploadUnknown(f"{repository} has no upload {upload[:40]!r}") from None

    @contextmanager
    def _opened(self, repository: str, upload: str) -> Iterator[BufferedRandom]:
        """An upload's file, for one request at a time.

        Raises:
            UploadUnknown, Busy
        """
        with self._known(repository, upload), self._file(repository, upload).open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy("another request is adding to this upload") from None
            # It may have become a blob since it was opened: nothing may be added to that.
            if not os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat()):
                raise FileNotFoundError(file.name)
            yield file


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull() from err
        raise StorageUnavailable(f"uploads can't be written: {err}") from err


def _check_sha512(file: BufferedRandom, expected: str) -> None:
    file.seek(0)
    found = f"sha512:{hashlib.file_digest(file, 'sha512').hexdigest()}"
    if found != expected:
        raise DigestMismatch(f"announced {expected}, received {found}; nothing was stored")


def _short(name: str) -> str:
    """A part of a file's name for any text."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]
