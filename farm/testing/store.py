"""A store that keeps its blobs in memory, and is full, away or damaged when a test wants it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from farm.errors import (
    BlobDamaged,
    DigestMismatch,
    EmptyBlob,
    NotFound,
    StorageFull,
    StorageUnavailable,
    TooLarge,
)
from farm.store.base import RESERVE_BYTES, Interrupted, Stored, StoredFile

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class _Blob:
    content: bytes
    put_at: datetime

    def seen(self, digest: str) -> StoredFile:
        return StoredFile(digest=digest, bytes=len(self.content), put_at=self.put_at)


class MemoryStore:
    """Keeps every promise of `farm.store.base.Store`; `local` gives a copy, as a remote store does.

    Parameters:
        folder: for local copies of blobs.
        room_bytes: for all blobs together; None means as much as there is memory.
        clock: returns the current time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        room_bytes: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.room_bytes = room_bytes
        self.is_away = False  #: while it is, every call raises StorageUnavailable
        self.condemned: dict[str, bytes] = {}  #: blobs taken out of reach, by digest
        self._folder = folder
        self._clock = clock
        self._lock = threading.RLock()
        self._blobs: dict[str, _Blob] = {}
        self._aside: dict[str, _Blob] = {}
        self._uploads: dict[str, Interrupted] = {}
        self._identity: str | None = None
        self._reserved = 0

    # On demand

    def damage(self, digest: str) -> None:
        """Flip one bit of a blob, as a disk does."""
        with self._lock:
            blob = self._there(digest)
            content = bytearray(blob.content)
            content[len(content) // 2] ^= 1
            self._blobs[digest] = replace(blob, content=bytes(content))
            self._forget_copy(digest)

    def interrupt(self, name: str, content: bytes) -> None:
        """Leave the remains of an upload whose process was killed."""
        self._uploads[name] = Interrupted(name=name, bytes=len(content), put_at=self._clock())

    # The store

    @property
    def address(self) -> str:
        return f"memory of this process, with copies at {self._folder}"

    def identity(self) -> str | None:
        self._answer()
        return self._identity

    def identify(self, identity: str | None = None) -> str:
        with self._lock:
            self._answer()
            self._identity = self._identity or identity or str(uuid4())
            return self._identity

    def take(self, source: Path, *, expected: str | None = None) -> Stored:
        self._answer()
        content = source.read_bytes()
        if expected is not None and _digest_of(content) != expected:
            raise DigestMismatch(f"announced {expected}, received {_digest_of(content)}")
        stored = self._put(content)
        source.unlink()
        return stored

    async def receive(
        self, chunks: AsyncIterator[bytes], *, expected: str | None, max_bytes: int
    ) -> Stored:
        self._answer()
        content = b""
        async for chunk in chunks:
            content += chunk
            if len(content) > max_bytes:
                raise TooLarge(f"a blob may have {max_bytes} bytes at most")
        if not content:
            raise EmptyBlob()
        digest = _digest_of(content)
        if expected not in (None, digest):
            raise DigestMismatch(f"announced {expected}, but {digest} arrived; nothing was kept")
        return self._put(content)

    def has(self, digest: str) -> bool:
        self._answer()
        return digest in self._blobs

    @contextmanager
    def local(self, digest: str) -> Iterator[Path]:
        with self._lock:
            blob = self._there(digest)
            if _digest_of(blob.content) != digest:
                raise BlobDamaged(f"the store has other bytes under {digest}")
            copy = self._copy(digest)
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                part = copy.with_suffix(".part")
                part.write_bytes(blob.content)
                part.chmod(0o444)
                part.replace(copy)
        yield copy

    def read(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        with self._lock:
            content = self._there(digest).content[start:stop]
        if content:
            yield content

    def place(self, digest: str) -> None:
        self._there(digest)

    def link(self, digest: str, *, lasts_s: float) -> None:
        del lasts_s
        self._there(digest)

    def drop_wrong_copy(self, digest: str) -> bool:
        del digest
        return False  # copies are verified

    def heal(self, digest: str) -> bool:
        del digest
        return False  # copies go with their blobs

    def is_right(self, digest: str) -> bool:
        with self._lock:
            return _digest_of(self._there(digest).content) == digest

    def condemn(self, digest: str) -> None:
        with self._lock:
            self._answer()
            blob = self._blobs.pop(digest, None)
            if blob is not None:
                self.condemned[digest] = blob.content
                self._forget_copy(digest)

    def try_to_write(self) -> None:
        self._answer()
        self._require_room(1)

    def free_bytes(self) -> int | None:
        self._answer()
        return None if self.room_bytes is None else self.room_bytes - self._taken()

    def keep_reserve(self) -> None:
        with self._lock:
            if self.room_bytes is not None:
                has_room = self.room_bytes - self._taken() >= 2 * RESERVE_BYTES
                self._reserved = RESERVE_BYTES if has_room else self._reserved

    def spend_reserve(self) -> None:
        self._reserved = 0

    def find(self, digest: str) -> StoredFile | None:
        self._answer()
        with self._lock:
            blob = self._blobs.get(digest)
            return None if blob is None else blob.seen(digest)

    def blobs(self) -> Iterator[StoredFile]:
        self._answer()
        with self._lock:
            found = [blob.seen(digest) for digest, blob in self._blobs.items()]
        yield from found

    def set_aside(self, digest: str) -> StoredFile | None:
        with self._lock:
            self._answer()
            _require_digest(digest)
            blob = self._blobs.pop(digest, None)
            if blob is None:
                return None
            self._aside[digest] = blob
            self._forget_copy(digest)
            return blob.seen(digest)

    def put_back(self, file: StoredFile) -> None:
        with self._lock:
            self._answer()
            blob = self._aside.pop(file.digest, None)
            if blob is not None:
                self._blobs[file.digest] = replace(blob, put_at=self._clock())
                self._forget_copy(file.digest)

    def put_all_back(self) -> None:
        with self._lock:
            self._answer()
            for digest, blob in list(self._aside.items()):
                self.put_back(blob.seen(digest))

    def delete(self, file: StoredFile) -> bool:
        with self._lock:
            self._answer()
            return self._aside.pop(file.digest, None) is not None

    def interrupted(self, before: datetime) -> Iterator[Interrupted]:
        self._answer()
        yield from [upload for upload in self._uploads.values() if upload.put_at < before]

    def delete_upload(self, upload: Interrupted) -> None:
        self._answer()
        self._uploads.pop(upload.name, None)

    # Its parts

    def _put(self, content: bytes) -> Stored:
        digest = _digest_of(content)
        with self._lock:
            self._answer()
            if digest not in self._blobs:
                self._require_room(len(content))
            self._blobs[digest] = _Blob(content=content, put_at=self._clock())
            self._forget_copy(digest)
        return Stored(digest=digest, bytes=len(content))

    def _there(self, digest: str) -> _Blob:
        self._answer()
        _require_digest(digest)
        if digest not in self._blobs:
            raise NotFound(f"the store has no blob {digest}", hint="upload it: POST /v1/blobs")
        return self._blobs[digest]

    def _copy(self, digest: str) -> Path:
        return self._folder / digest.removeprefix("sha256:")

    def _forget_copy(self, digest: str) -> None:
        self._copy(digest).unlink(missing_ok=True)

    def _answer(self) -> None:
        if self.is_away:
            raise StorageUnavailable("the artifact store is away, as its test wants it")

    def _taken(self) -> int:
        kept = (*self._blobs.values(), *self._aside.values())
        return self._reserved + sum(len(blob.content) for blob in kept)

    def _require_room(self, size: int) -> None:
        if self.room_bytes is not None and self._taken() + size > self.room_bytes:
            raise StorageFull()


def _digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _require_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise NotFound(f"{digest!r} isn't a sha256 digest")
