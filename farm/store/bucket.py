"""A store in a bucket: of S3 and what speaks its protocol, of Google's, of Azure's.

Such a store renames nothing, and deletes whatever has a name by then. So nothing is put twice under one name:

- ``data/ID`` has the bytes of one put, whose digest is known only once they have all come.
- ``sha256/ab/NAME/ID.SIZE`` says that these are a blob's. It is written last: without it there is no blob.
- ``aside/NAME/ID.SIZE`` and ``damaged/NAME/ID.SIZE`` say so of what was taken out of reach.

Whoever takes a blob out of reach, or deletes it, names the puts that it has seen, and a later one stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import uuid4

from anyio import CapacityLimiter, to_thread

from farm.errors import EmptyBlob, FarmError, NotFound, StorageUnavailable, TooLarge
from farm.store import digests, objects, streams
from farm.store.base import Interrupted, Stored, StoredFile
from farm.store.cache import Cache
from farm.store.etags import Etag
from farm.store.puts import ASIDE, DAMAGED, DATA, POINTER, REACH, Puts, new_id, newest_of

#: A part of an upload. There are at most 10,000 of them.
_PART_BYTES = 8 << 20
_MOST_PARTS = 9_000
#: Parts on their way at once, for each upload.
_PARTS = 4
_READ_BYTES = 1 << 20
_UPLOAD_THREADS = 8
#: What garbage collection writes is small.
_RESERVE, _RESERVE_BYTES = "reserve", 1 << 20
#: What the library says of a 200 to a range.
_WHOLE = "non-partial response"


class BucketStore:
    """Blobs as objects below a prefix of a bucket, with copies of some on this machine.

    Parameters:
        cache: of this machine.
        public_endpoint: where clients reach the store, for links, if that is elsewhere.
        retries: of each request.

    Raises:
        InvalidRequest, ExtraMissing
    """

    def __init__(
        self, url: str, cache: Cache, *, public_endpoint: str = "", retries: int | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._cache = cache
        options: dict[str, Any] = {} if retries is None else {"retries": retries}
        self._bucket = objects.opened(url, **options)
        self._puts = Puts(self._bucket, self._url)
        self._public: Any = self._bucket  # each kind that a URL may name can sign
        if public_endpoint:
            self._public = objects.opened(url, **options, endpoint=public_endpoint)

    @property
    def address(self) -> str:
        return f"{self._url}, with copies at {self._cache.address}"

    @cached_property
    def _uploading(self) -> CapacityLimiter:
        """Separate threads, so that uploads to a slow store don't take those of other requests."""
        return CapacityLimiter(_UPLOAD_THREADS)

    # Ownership

    def identity(self) -> str | None:
        return self._puts.text("id")

    def identify(self, identity: str | None = None) -> str:
        from obstore.exceptions import AlreadyExistsError

        if known := self.identity():
            return known
        with suppress(AlreadyExistsError), self._puts.reached("written", but=(AlreadyExistsError,)):
            self._puts.write(
                "id", f"{identity or uuid4()}\n".encode(), is_new=True
            )  # of concurrent callers, one wins
        kept = self.identity()
        if kept is None:
            raise StorageUnavailable(f"{self._url} didn't keep its identity")
        return kept

    # Putting

    def take(self, source: Path, *, expected: str | None = None) -> Stored:
        with self._puts.reached("written"):
            size = source.stat().st_size
            etag, digest = _read_through(source, part_bytes := _part_bytes(size))
            digests.check(digest, expected)
            self._upload(source, digest, size, etag, part_bytes)
        self._cache.adopt(source, digest)
        return Stored(digest=digest, bytes=size)

    def _upload(self, source: Path, digest: str, size: int, etag: Etag, part_bytes: int) -> None:
        import obstore

        made = new_id()
        told = obstore.put(
            *(self._bucket, f"{DATA}/{made}", source),
            chunk_size=part_bytes,
            max_concurrency=_PARTS,
        )
        self._announce(made, digest, size, is_proven=etag.says(told["e_tag"]))

    async def receive(
        self, chunks: AsyncIterator[bytes], *, expected: str | None, max_bytes: int
    ) -> Stored:
        import obstore

        size, found, made, etag = 0, hashlib.sha256(), new_id(), Etag(_PART_BYTES)
        in_thread = partial(to_thread.run_sync, limiter=self._uploading)
        with self._puts.reached("written"):
            writer = obstore.open_writer(
                *(self._bucket, f"{DATA}/{made}"), buffer_size=_PART_BYTES, max_concurrency=_PARTS
            )

            def write(chunk: bytearray) -> None:
                found.update(chunk)
                etag.update(chunk)
                writer.write(bytes(chunk))

            def end(digest: str) -> None:
                writer.close()
                told = obstore.head(self._bucket, f"{DATA}/{made}")
                self._announce(made, digest, size, is_proven=etag.says(told["e_tag"]))

            pending = bytearray()
            # A writer that isn't closed leaves no object.
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLarge(f"blobs are limited to {max_bytes} bytes")
                pending += chunk
                if len(pending) >= _READ_BYTES:
                    await in_thread(write, pending)
                    pending = bytearray()
            if size == 0:
                raise EmptyBlob()
            await in_thread(write, pending)
            digest = f"sha256:{found.hexdigest()}"
            digests.check(digest, expected)
            await in_thread(end, digest)
        return Stored(digest=digest, bytes=size)

    def _announce(self, made: str, digest: str, size: int, *, is_proven: bool) -> None:
        """Have an upload be a blob, in place of its earlier puts.

        Parameters:
            is_proven: whether all its bytes arrived as they were; otherwise they are read back.

        Raises:
            StorageUnavailable: other bytes did.
        """
        if not is_proven and self._digest_of(made, size) != digest:
            self._puts.delete([f"{DATA}/{made}"])
            raise StorageUnavailable(f"other bytes than were sent arrived at {self._url}")
        before = self._puts.of(digest)
        name = digests.name_of(digest)
        self._puts.write(f"{REACH}/{name[:2]}/{name}/{made}.{size}", digest.encode())
        self._puts.erase(before)

    def _digest_of(self, made: str, size: int) -> str:
        found = hashlib.sha256()
        for chunk in streams.resumed(partial(self._object_at, f"{DATA}/{made}"), 0, size):
            found.update(chunk)
        return f"sha256:{found.hexdigest()}"

    # Reading

    def has(self, digest: str) -> bool:
        return self.find(digest) is not None

    @contextmanager
    def local(self, digest: str) -> Iterator[Path]:
        digests.name_of(digest)
        size_of = lambda: self._puts.newest(digest).bytes  # noqa: E731
        with self._cache.copy(digest, size_of, partial(self.read, digest)) as path:
            yield path

    def read(self, digest: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        size = self._puts.newest(digest).bytes
        end = size if stop is None else min(stop, size)
        yield from streams.resumed(partial(self._open_at, digest), start, end)

    def _open_at(self, digest: str, start: int) -> Iterator[bytes]:
        """A blob's bytes over one connection: of another put if that has been replaced meanwhile."""
        puts = sorted(self._puts.of(digest), key=lambda one: one.order, reverse=True)
        for put in puts:
            with suppress(FileNotFoundError):
                yield from self._object_at(put.data, start)
                return
        raise digests.absent(digest)

    def _object_at(self, path: str, start: int) -> Iterator[bytes]:
        import obstore
        from obstore.exceptions import BaseError

        with self._puts.reached("read", but=(FileNotFoundError,)):
            try:
                got = obstore.get(self._bucket, path, options={"range": {"offset": start}})
                yield from map(bytes, got.stream(_READ_BYTES))
            except BaseError as err:
                if _WHOLE not in str(err):
                    raise
                whole = obstore.get(self._bucket, path).stream(_READ_BYTES)
                yield from streams.skipping(map(bytes, whole), start)

    def place(self, digest: str) -> None:
        self._puts.newest(digest)

    def link(self, digest: str, *, lasts_s: float) -> str:
        import obstore

        data = self._puts.newest(digest).data
        with self._puts.reached("read"):
            url: str = obstore.sign(self._public, "GET", data, timedelta(seconds=lasts_s))
        return url

    def is_right(self, digest: str) -> bool:
        found = hashlib.sha256()
        for chunk in self.read(digest):
            found.update(chunk)
        return f"sha256:{found.hexdigest()}" == digest

    def drop_wrong_copy(self, digest: str) -> bool:
        return self._cache.drop_wrong(digest)

    def condemn(self, digest: str) -> None:
        with self._puts.reached("written"):
            self._puts.move(self._puts.of(digest), DAMAGED)

    def heal(self, digest: str) -> bool:
        with self._cache.held(digest) as copy, self._puts.reached("written"):
            if copy is None:
                return False
            size = copy.stat().st_size
            etag, found = _read_through(copy, part_bytes := _part_bytes(size))
            if found == digest:
                self._upload(copy, digest, size, etag, part_bytes)
            return found == digest

    # Room

    def try_to_write(self) -> None:
        probe = f"probe/{new_id()}"
        with self._puts.reached("written"):
            self._puts.write(probe, b"x")
            self._puts.delete([probe])

    def free_bytes(self) -> None:
        return None

    def keep_reserve(self) -> None:
        with suppress(FarmError), self._puts.reached("written"):  # a bucket may have a quota
            if not self._puts.has(_RESERVE):
                self._puts.write(_RESERVE, bytes(_RESERVE_BYTES))

    def spend_reserve(self) -> None:
        with suppress(FarmError), self._puts.reached("written"):
            self._puts.delete([_RESERVE])

    # Garbage collection

    def blobs(self) -> Iterator[StoredFile]:
        for _, puts in groupby(self._puts.listed(REACH), lambda one: one.name):
            yield newest_of(puts).as_file()

    def find(self, digest: str) -> StoredFile | None:
        with suppress(NotFound):
            return self._puts.newest(digest).as_file()
        return None

    def set_aside(self, digest: str) -> StoredFile | None:
        puts = self._puts.of(digest)
        if not puts:
            return None
        with self._puts.reached("written"):
            self._puts.move(puts, ASIDE)
        return newest_of(puts).as_file()

    def put_back(self, file: StoredFile) -> None:
        with self._puts.reached("written"):
            self._puts.move(self._puts.of(file.digest, ASIDE), REACH)

    def put_all_back(self) -> None:
        with self._puts.reached("written"):
            self._puts.move(list(self._puts.listed(ASIDE)), REACH)

    def delete(self, file: StoredFile) -> bool:
        puts = self._puts.of(file.digest, ASIDE)
        with self._puts.reached("written"):
            self._puts.erase(puts)
        return bool(puts)

    def interrupted(self, before: datetime) -> Iterator[Interrupted]:
        """Bytes that no blob has, and puts that a later one of the same blob has replaced."""
        # In this order: a put that ends meanwhile isn't taken for an interrupted one.
        data = list(self._puts.objects(DATA))
        known: set[str] = set()
        for where in (REACH, ASIDE, DAMAGED):
            for _, some in groupby(self._puts.listed(where), lambda one: one.name):
                puts = list(some)
                known |= {one.id for one in puts}
                last = newest_of(puts)
                for one in puts:
                    if where == REACH and one is not last and one.put_at < before:
                        yield Interrupted(name=one.path, bytes=one.bytes, put_at=one.put_at)
        for found in data:
            at, is_known = found["last_modified"], found["path"].removeprefix(f"{DATA}/") in known
            if at < before and not is_known:
                yield Interrupted(name=found["path"], bytes=found["size"], put_at=at)

    def delete_upload(self, upload: Interrupted) -> None:
        found = POINTER.fullmatch(upload.name)
        with self._puts.reached("written"):
            self._puts.delete([upload.name, *([f"{DATA}/{found[2]}"] if found else [])])


def _part_bytes(size: int) -> int:
    return max(_PART_BYTES, size // _MOST_PARTS)


def _read_through(source: Path, part_bytes: int) -> tuple[Etag, str]:
    """A file's ETag in parts of this size, and its digest."""
    etag, found = Etag(part_bytes), hashlib.sha256()
    with source.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            etag.update(chunk)
            found.update(chunk)
    return etag, f"sha256:{found.hexdigest()}"
