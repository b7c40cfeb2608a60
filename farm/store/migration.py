"""Copies a farm's artifacts to another store, while the farm goes on.

The new store has the farm's identity only once it has all that the old one had: until then the API refuses
it. A copy that was interrupted goes on with what isn't there yet, and so does one that is run again later.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import anyio
from anyio import to_thread

from farm.errors import Conflict, DigestMismatch, EmptyBlob, InvalidRequest, NotFound, TooLarge
from farm.store.base import Store, StoredFile

#: Blobs on their way at once: most are small, and a bucket takes its time for each.
_AT_ONCE = 8

#: Told of each blob's bytes that have arrived, or were there already.
Arrived = Callable[[int], None]


@dataclass(kw_only=True)
class Copied:
    """What a copy has done, or would do."""

    identity: str
    files: int = 0
    bytes: int = 0
    present: int = 0  #: blobs that were there already
    damaged: list[str] = field(default_factory=list)  #: left out: not what their digests say

    @property
    def is_complete(self) -> bool:
        return not self.damaged


class Migration:
    """From one store to another.

    Raises:
        InvalidRequest: no farm has used the source.
        Conflict: another farm uses the target.
        StorageUnavailable
    """

    def __init__(self, source: Store, target: Store) -> None:
        self._source, self._target = source, target
        identity, theirs = source.identity(), target.identity()
        if identity is None:
            raise InvalidRequest(
                f"no farm has its artifacts at {source.address}",
                hint="is it the farm's FARM_STORE?",
            )
        if theirs not in (None, identity):
            raise Conflict(
                f"{target.address} has another farm's artifacts",
                hint="name an empty folder, or another prefix of the bucket",
            )
        self._identity = identity
        self.total_bytes = 0  #: of all that the source has, once it has been listed

    def run(self, *, dry_run: bool = False, arrived: Arrived = lambda _bytes: None) -> Copied:
        """Copy what isn't there, each verified by its digest.

        Parameters:
            dry_run: write nothing, and report what would be copied.

        Raises:
            StorageUnavailable, StorageFull: what has been copied stays.
        """
        there = {file.digest: file.bytes for file in self._target.blobs()}
        files = list(self._source.blobs())
        self.total_bytes = sum(file.bytes for file in files)
        lacking = [file for file in files if there.get(file.digest) != file.bytes]
        done = Copied(identity=self._identity, present=len(files) - len(lacking))
        arrived(self.total_bytes - sum(file.bytes for file in lacking))
        if dry_run:
            done.files, done.bytes = len(lacking), sum(file.bytes for file in lacking)
            return done
        anyio.run(self._copy_all, lacking, done, arrived)
        if done.is_complete:
            self._target.identify(self._identity)
        return done

    async def _copy_all(self, files: list[StoredFile], done: Copied, arrived: Arrived) -> None:
        rest = iter(files)

        async def work() -> None:
            for file in rest:
                await self._copy(file, done, arrived)

        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(_AT_ONCE):
                    tasks.start_soon(work)
        except* Exception as failed:
            raise failed.exceptions[0] from None  # the others are of the same store

    async def _copy(self, file: StoredFile, done: Copied, arrived: Arrived) -> None:
        chunks = _counted(self._source.read(file.digest), arrived)
        try:
            await self._target.receive(chunks, expected=file.digest, max_bytes=file.bytes)
        except (NotFound, DigestMismatch, EmptyBlob, TooLarge):
            # What has been collected meanwhile, nothing needs.
            if await to_thread.run_sync(self._source.has, file.digest):
                done.damaged.append(file.digest)
            return
        done.files += 1
        done.bytes += file.bytes


async def _counted(chunks: Iterator[bytes], arrived: Arrived) -> AsyncIterator[bytes]:
    while (chunk := await to_thread.run_sync(partial(next, chunks, b""))) != b"":
        yield chunk
        arrived(len(chunk))
