"""Puts of blobs in a bucket, as objects; ``bucket.py`` says which there are."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from farm.errors import StorageFull, StorageUnavailable
from farm.specs import buckets
from farm.store import digests, objects
from farm.store.base import StoredFile

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: Folders: of blobs in reach, of those that were taken out of it, and of bytes.
REACH, ASIDE, DAMAGED, DATA = "sha256", "aside", "damaged", "data"
POINTER = re.compile(
    r"(?:sha256/[0-9a-f]{2}|aside|damaged)/([0-9a-f]{64})/([0-9]+-[0-9a-f]{16})\.([0-9]+)"
)
_FULL = re.compile(r"QuotaExceeded|InsufficientStorage|StorageFull|507 Insufficient")


@dataclass(frozen=True, kw_only=True)
class Put:
    """One put of a blob."""

    path: str  #: of the object that says so
    name: str  #: the blob's
    id: str
    bytes: int
    put_at: datetime

    @property
    def data(self) -> str:
        return f"{DATA}/{self.id}"

    @property
    def order(self) -> tuple[datetime, str]:
        return self.put_at, self.id

    def moved_to(self, where: str) -> str:
        folder = f"{where}/{self.name[:2]}" if where == REACH else where
        return f"{folder}/{self.name}/{self.id}.{self.bytes}"

    def as_file(self) -> StoredFile:
        return StoredFile(digest=f"sha256:{self.name}", bytes=self.bytes, put_at=self.put_at)


class Puts:
    """Finds puts, and moves and erases them.

    Parameters:
        url: of the bucket, for messages.
    """

    def __init__(self, bucket: ObjectStore, url: str) -> None:
        self.bucket = bucket
        self._url = url

    def newest(self, digest: str) -> Put:
        """A blob's last put.

        Raises:
            NotFound, StorageUnavailable
        """
        puts = self.of(digest)
        if not puts:
            raise digests.absent(digest)
        return newest_of(puts)

    def of(self, digest: str, where: str = REACH) -> list[Put]:
        """A blob's puts.

        Raises:
            NotFound: this isn't a digest.
            StorageUnavailable
        """
        name = digests.name_of(digest)
        return list(
            self.listed(f"{where}/{name[:2]}/{name}" if where == REACH else f"{where}/{name}")
        )

    def listed(self, folder: str) -> Iterator[Put]:
        """The puts below a folder, those of a blob after each other."""
        for found in self.objects(folder):
            parsed = POINTER.fullmatch(found["path"])
            if parsed is None:
                continue  # not ours
            name, made, size = parsed.groups()
            at = _told_apart(found["last_modified"], made)
            yield Put(path=found["path"], name=name, id=made, bytes=int(size), put_at=at)

    def objects(self, folder: str) -> Iterator[Any]:
        """All objects below a folder, in their names' order."""
        import obstore

        with self.reached("read"):
            for some in obstore.list(self.bucket, folder):
                yield from some

    def move(self, puts: Iterable[Put], where: str) -> None:
        for put in puts:
            self.write(put.moved_to(where), f"sha256:{put.name}".encode())
            self.delete([put.path])

    def erase(self, puts: Iterable[Put]) -> None:
        for put in puts:
            self.delete([put.path, put.data])

    def text(self, path: str) -> str | None:
        import obstore

        with self.reached("read"), suppress(FileNotFoundError):
            return bytes(obstore.get(self.bucket, path).bytes()).decode().strip() or None
        return None

    def has(self, path: str) -> bool:
        import obstore

        with suppress(FileNotFoundError):
            obstore.head(self.bucket, path)
            return True
        return False

    def write(self, path: str, content: bytes, *, is_new: bool = False) -> None:
        import obstore

        obstore.put(self.bucket, path, content, mode="create" if is_new else "overwrite")

    def delete(self, paths: Iterable[str]) -> None:
        import obstore

        for path in paths:
            with suppress(FileNotFoundError):
                obstore.delete(self.bucket, path)

    @contextmanager
    def reached(self, done: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Convert the library's errors to the farm's.

        Parameters:
            done: what can't be done.
            but: errors that are the caller's.

        Raises:
            StorageFull, StorageUnavailable
        """
        from obstore.exceptions import BaseError

        try:
            yield
        except but:
            raise
        except (BaseError, OSError) as err:
            if _FULL.search(str(err)):
                raise StorageFull() from err
            raise StorageUnavailable(
                f"the artifact store {self._url} can't be {done}: {objects.first_line(err)}",
                hint=buckets.hint(self._url),
            ) from err


def _told_apart(at: datetime, made: str) -> datetime:
    """A store counts seconds, but puts of the same second must differ: never by much into the future."""
    began_ns, _, rest = made.partition("-")
    began_s, fraction_ns = divmod(int(began_ns), 1_000_000_000)
    is_same = began_s == int(at.timestamp())
    return at.replace(microsecond=fraction_ns // 1000 if is_same else int(rest, 16) % 1000)


def new_id() -> str:
    """A name that no other put has."""
    return f"{time.time_ns()}-{secrets.token_hex(8)}"


def newest_of(puts: Iterable[Put]) -> Put:
    return max(puts, key=lambda one: one.order)
