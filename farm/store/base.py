"""The contract of an artifact store.

A blob is named by the sha256 of its bytes, and is either complete and correct or absent: a put interrupted
at any point, by an error or by its process's death, leaves nothing that a caller could take for a blob. The
only exception is a medium that damages stored bytes, which `is_right` detects.

Every call may raise `StorageUnavailable`, and writing calls also `StorageFull`; neither leaves a blob half
put or half removed. Many threads and processes use a store at once. tests/contract/test_stores.py checks all
of this for every store.

A worker needs `Blobs`: it puts what it made and reads what its jobs need. The API needs a whole `Store`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

#: Reserved on the disk, so that garbage collection has room to work when the disk is full.
RESERVE_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A blob in the store."""

    digest: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A blob, in place or set aside, as last seen."""

    digest: str
    bytes: int
    put_at: datetime  #: when it was last put


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """The leftover of an upload whose process died: the start of a blob."""

    name: str  #: chosen by the store
    bytes: int
    put_at: datetime  #: when it was last written to


class Blobs(Protocol):
    """Puts and reads artifacts."""

    @property
    def address(self) -> str:
        """Its location, for messages."""
        ...

    def identity(self) -> str | None:
        """The store's unique id, or None if no farm has used it. Writes nothing."""
        ...

    def try_to_write(self) -> None:
        """Raise the error that writing would raise."""
        ...

    def take(self, source: Path, *, expected: str | None = None) -> Stored:
        """Move a file into the store; if that fails, the file stays where it was.

        Parameters:
            expected: the announced digest, or None.

        Raises:
            DigestMismatch: nothing was stored.

        Putting an existing blob renews it, and repairs it if it was damaged. Concurrent puts of the same
        blob are safe: one blob results, and all callers get the same answer.
        """
        ...

    def has(self, digest: str) -> bool:
        """Whether the blob exists; False for anything that isn't a digest."""
        ...

    def local(self, digest: str) -> AbstractContextManager[Path]:
        """A local, read-only file with the blob, for the block.

        What comes over a network is resumed after a lost connection, and verified before the block begins; a
        file on a disk is as the disk has it. Once opened, it keeps the blob's bytes whatever happens to the
        blob; its name may disappear soon after the blob does.

        Raises:
            NotFound: it doesn't exist, or this isn't a digest.
            BlobDamaged: other bytes arrive, again and again.
            StorageFull: there is no room for a copy.
        """
        ...

    def is_right(self, digest: str) -> bool:
        """Whether a blob's bytes match its digest; reads all of them.

        Raises:
            NotFound
        """
        ...

    def drop_wrong_copy(self, digest: str) -> bool:
        """Delete this machine's copy of a blob if its bytes are wrong; return whether they were."""
        ...

    def condemn(self, digest: str) -> None:
        """Take a damaged blob out of reach, and keep it for inspection. A missing blob isn't an error."""
        ...

    def heal(self, digest: str) -> bool:
        """Put a damaged or missing blob again if this machine has a right copy; return whether it had one."""
        ...


class Store(Blobs, Protocol):
    """Stores artifacts."""

    def identify(self, identity: str | None = None) -> str:
        """Its identity: if it has none, this one or else a new one. Concurrent callers get the same one."""
        ...

    async def receive(
        self, chunks: AsyncIterator[bytes], *, expected: str | None, max_bytes: int
    ) -> Stored:
        """Put a blob as it arrives, without holding it in memory or blocking the event loop.

        Parameters:
            expected: the announced digest, or None.

        Raises:
            DigestMismatch, EmptyBlob, TooLarge: nothing was stored.
        """
        ...

    def read(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """A blob's bytes from ``start`` to before ``stop``, as they come. Not verified: the reader does that.

        Raises:
            NotFound: before the first byte.
            StorageUnavailable: the rest can't be had.
        """
        ...

    def place(self, digest: str) -> Path | None:
        """The file with a blob, if the store keeps its blobs in files here: a server may send it.

        Raises:
            NotFound
        """
        ...

    def link(self, digest: str, *, lasts_s: float) -> str | None:
        """A URL under which anybody may read the blob for a while; None if the store gives none.

        Raises:
            NotFound
        """
        ...

    # Room

    def free_bytes(self) -> int | None:
        """The free space, or None if the store is unlimited."""
        ...

    def keep_reserve(self) -> None:
        """Allocate the reserve on the disk, if the store has one and there is room. Never raises."""
        ...

    def spend_reserve(self) -> None:
        """Free the reserve. Never raises."""
        ...

    # Garbage collection

    def blobs(self) -> Iterator[StoredFile]:
        """Every blob; may or may not include those that come or go meanwhile."""
        ...

    def find(self, digest: str) -> StoredFile | None:
        """One blob as `blobs` lists it; None if it doesn't exist or this isn't a digest."""
        ...

    def set_aside(self, digest: str) -> StoredFile | None:
        """Take a blob out of reach without deleting it; None if it doesn't exist.

        A put of the same blob before this call renews the blob that is set aside; a put after it creates
        another blob, independent of the one set aside.
        """
        ...

    def put_back(self, file: StoredFile) -> None:
        """Put back a blob that was set aside, as if it had been put now. No error if it is no longer set
        aside."""
        ...

    def put_all_back(self) -> None:
        """Put back everything set aside: leftovers of a killed garbage collection."""
        ...

    def delete(self, file: StoredFile) -> bool:
        """Delete a blob that was set aside; False if it no longer is."""
        ...

    def interrupted(self, before: datetime) -> Iterator[Interrupted]:
        """Leftovers from before this time of uploads whose processes died."""
        ...

    def delete_upload(self, upload: Interrupted) -> None:
        """Delete an upload's leftover. No error if it is already gone."""
        ...
