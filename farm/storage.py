"""The artifact store: content-addressed blobs. A blob is either whole and right, or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from anyio import to_thread

from farm.errors import DigestMismatch, NotFound, Rejected, StorageFull, StorageUnavailable

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


class TooLarge(Rejected):
    """The blob is larger than the farm takes."""

    status = 413


class EmptyBlob(Rejected):
    """The body is empty; nothing was kept."""

    default_hint = "check the file and its path"


@dataclass(frozen=True, kw_only=True)
class Stored:
    digest: str
    bytes: int


class Store(Protocol):
    """Where artifacts live."""

    def take(self, source: Path) -> Stored:
        """Keep a file; it's gone from where it was."""
        ...

    def has(self, digest: str) -> bool: ...

    def path(self, digest: str) -> Path:
        """A local file with the blob, to read and never to write.

        Raises:
            NotFound
        """
        ...


class LocalStore:
    """Blobs as files below one folder, which API and workers share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming = root / "incoming"

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
            raise NotFound(f"the store has no blob {digest}", hint="upload it: POST /v1/blobs")
        return place

    def take(self, source: Path) -> Stored:
        """Keep a file; it's gone from where it was. On the same file system it isn't even copied.

        Raises:
            StorageFull, StorageUnavailable
        """
        with self._receiving() as blob:
            try:
                source.replace(blob.path)
            except OSError as err:
                if err.errno != errno.EXDEV:
                    raise
                shutil.move(source, blob.path)
            return blob.keep_file()

    async def receive(
        self, chunks: AsyncIterator[bytes], *, expected: str | None, max_bytes: int
    ) -> Stored:
        """Write a body to the store as it arrives; a body that breaks off leaves nothing behind.

        Parameters:
            expected: the announced digest, or None.

        Raises:
            DigestMismatch, EmptyBlob, TooLarge, StorageFull, StorageUnavailable
        """
        with self._receiving() as blob:
            async for chunk in chunks:
                blob.write(chunk)
                if blob.bytes > max_bytes:
                    raise TooLarge(
                        f"a blob may have {max_bytes} bytes at most",
                        hint="raise FARM_MAX_UPLOAD_BYTES on the API",
                    )
            if blob.bytes == 0:
                raise EmptyBlob()
            # fsync takes its time: not on the event loop.
            return await to_thread.run_sync(blob.keep, expected)

    @contextmanager
    def _receiving(self) -> Iterator[_Incoming]:
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._incoming, delete=False) as file:
                blob = _Incoming(store=self, file=file)  # type: ignore[arg-type]
                try:
                    yield blob
                finally:
                    Path(file.name).unlink(missing_ok=True)
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull() from err
            raise StorageUnavailable(f"the artifact store can't be written: {err}") from err


class _Incoming:
    """A blob on its way in: hashed while it is written, renamed into place when it is whole."""

    def __init__(self, *, store: LocalStore, file: BinaryIO) -> None:
        self._store = store
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    @property
    def path(self) -> Path:
        return Path(self._file.name)

    def write(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._file.write(chunk)
        self.bytes += len(chunk)

    def keep_file(self) -> Stored:
        """Keep the file that was put in this one's place."""
        with self.path.open("rb") as file:
            self._file = file
            while chunk := file.read(_CHUNK_BYTES):
                self._hash.update(chunk)
                self.bytes += len(chunk)
            return self.keep(None)

    def keep(self, expected: str | None) -> Stored:
        digest = f"sha256:{self._hash.hexdigest()}"
        if expected is not None and digest != expected:
            raise DigestMismatch(f"announced {expected}, but {digest} arrived; nothing was kept")
        place = self._store._place(digest)
        if not place.is_file():
            self._file.flush()
            os.fsync(self._file.fileno())
            place.parent.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o444)
            self.path.replace(place)
        return Stored(digest=digest, bytes=self.bytes)
