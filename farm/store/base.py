"""What a store of artifacts promises, wherever it keeps them.

A blob is named by the sha256 of its bytes, and is either whole and right or not there: a put that is cut
off at any point, by an error or with its process, leaves nothing that a caller could take for a blob. The
one exception is a medium that damages bytes after they were put, which `is_right` finds.

Every call may raise `StorageUnavailable`, and one that writes `StorageFull`; neither leaves a blob half
put or half removed. Stores are used by many threads and by many processes at once. What all of this means
in practice is held against every store in tests/unit/test_stores.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

#: Kept of a disk, so that garbage collection has room to work when all else is taken.
RESERVE_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A blob that is in the store."""

    digest: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A blob, in its place or set aside, as it was when it was looked at."""

    digest: str
    bytes: int
    put_at: datetime  #: when it was last put


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """What an upload left that broke off with its process: the start of a blob."""

    name: str  #: the store's own
    bytes: int
    put_at: datetime  #: when it was last written to


class Store(Protocol):
    """Where artifacts live."""

    @property
    def address(self) -> str:
        """Where it is, for a message."""
        ...

    # Whose it is

    def identity(self) -> str | None:
        """What tells this store from others, or None where no farm has used it. Writes nothing."""
        ...

    def identify(self) -> str:
        """Its identity, given now if it has none. Of two that come at once, both get the same."""
        ...

    # Putting

    def take(self, source: Path) -> Stored:
        """Keep a file, which is gone from where it was; if it can't be kept, it's still there.

        Putting what is there already makes it young, and heals it where it was damaged. Any number may
        put one blob at once: there is one, and each is told the same.
        """
        ...

    async def receive(
        self, chunks: AsyncIterator[bytes], *, expected: str | None, max_bytes: int
    ) -> Stored:
        """Put a blob as it arrives, without holding it in memory or the event loop up.

        Parameters:
            expected: the announced digest, or None.

        Raises:
            DigestMismatch, EmptyBlob, TooLarge: nothing was kept.
        """
        ...

    # Reading

    def has(self, digest: str) -> bool:
        """Whether the blob is there; what isn't a digest isn't."""
        ...

    def path(self, digest: str) -> Path:
        """A local file with the blob, to read and never to write.

        It has the blob's bytes for whoever has opened it, whatever becomes of the blob meanwhile; the
        name may be gone soon after the blob is.

        Raises:
            NotFound: it isn't there, or this isn't a digest.
        """
        ...

    def is_right(self, digest: str) -> bool:
        """Whether a blob's bytes are those that its digest names; reads all of them.

        Raises:
            NotFound
        """
        ...

    def condemn(self, digest: str) -> None:
        """Take a damaged blob out of reach, and keep it for inspection. A missing blob isn't an error."""
        ...

    # Room

    def try_to_write(self) -> None:
        """Raise what writing would."""
        ...

    def free_bytes(self) -> int | None:
        """The room that is left, or None where the store has no end."""
        ...

    def keep_reserve(self) -> None:
        """Take the reserve of the disk, if it has one and there is room. Never raises."""
        ...

    def spend_reserve(self) -> None:
        """Give the reserve back to the disk. Never raises."""
        ...

    # Collecting garbage

    def blobs(self) -> Iterator[StoredFile]:
        """Every blob; those that come or go meanwhile may be among them or not."""
        ...

    def set_aside(self, digest: str) -> StoredFile | None:
        """Take a blob out of reach without deleting it, or None if it isn't there.

        Whoever puts the same blob before that makes the one aside younger than it was; whoever puts it
        after that puts another, which what becomes of the one aside doesn't touch.
        """
        ...

    def put_back(self, file: StoredFile) -> None:
        """Put a blob that was set aside in reach again, as if it had been put now. It isn't an error if it no
        longer is set aside."""
        ...

    def put_all_back(self) -> None:
        """Put back whatever is aside: what a garbage collection left that was killed."""
        ...

    def delete(self, file: StoredFile) -> bool:
        """Delete a blob that was set aside; False if it is no longer aside."""
        ...

    def interrupted(self, before: datetime) -> Iterator[Interrupted]:
        """What uploads left behind that broke off with their process, before this time."""
        ...

    def delete_upload(self, upload: Interrupted) -> None:
        """Delete what an upload left. It isn't an error if that is already gone."""
        ...
