"""Garbage collection: the store loses what nothing in the database refers to, and never what something does.

A blob goes in three steps, each of which can be the last. Its row is deleted in a transaction that
looks at the references once more, so that a submission which races it sees the blob or is told to
upload it. Its file is set aside, so that whoever stores the same blob from then on puts a file of
its own. Only when it has stayed old and unknown until then is it deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from farm.database.base import now
from farm.database.session import Database
from farm.schemas.storage import Blob, GcReport
from farm.store import artifacts
from farm.store.base import Store, StoredFile
from farm.trust import audit
from farm.trust.callers import THE_FARM, Caller

LISTED = 1000  #: removed blobs that a report names
_BATCH = 100  #: blobs a transaction: SQLite's other writers wait meanwhile
#: What isn't in the database yet may be on its way there: it has this long, however short the grace.
_ARRIVING = timedelta(hours=1)
#: How far the clocks of the farm's machines may be apart, and how long a submission may take.
_SKEW = timedelta(minutes=10)


@dataclass(kw_only=True)
class _Tally:
    seen: int = 0
    seen_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0
    listed: list[Blob] = field(default_factory=list)

    def see(self, file: StoredFile) -> None:
        self.seen += 1
        self.seen_bytes += file.bytes

    def remove(self, file: StoredFile) -> None:
        self.removed += 1
        self.removed_bytes += file.bytes
        if len(self.listed) < LISTED:
            self.listed.append(Blob(digest=file.digest, bytes=file.bytes))


def collect(
    db: Database,
    store: Store,
    *,
    older_than_s: float,
    dry_run: bool = False,
    by: Caller = THE_FARM,
) -> GcReport:
    """Remove the blobs that nothing refers to, and what interrupted uploads have left.

    Parameters:
        older_than_s: the grace. What was put or asked for since then stays: somebody may be about
            to refer to it.
        dry_run: remove nothing, and report what would be removed.
        by: who asks for it, for the audit.

    Raises:
        StorageFull, StorageUnavailable, DatabaseUnavailable
    """
    if not dry_run:
        store.spend_reserve()  # on a full disk even a deletion can't be written down
    try:
        return _Collector(db, store, by, older_than_s=older_than_s).run(dry_run=dry_run)
    finally:
        store.keep_reserve()


class _Collector:
    def __init__(self, db: Database, store: Store, by: Caller, *, older_than_s: float) -> None:
        self._db = db
        self._store = store
        self._by = by
        self._started = now()
        self._before = self._started - timedelta(seconds=older_than_s)
        self._arrived_before = min(self._before, self._started - _ARRIVING)
        self._tally = _Tally()

    def run(self, *, dry_run: bool) -> GcReport:
        if not dry_run:
            self._store.put_all_back()  # what a gc that was killed had set aside
        with self._db.read() as session:
            referred = artifacts.referred(session)
        for batch in _batches(self._unreferred(referred), _BATCH):
            files = {file.digest: file for file in batch}
            for digest in self._would_go(files) if dry_run else self._remove(files):
                self._tally.remove(files[digest])
        uploads = list(self._store.interrupted(self._arrived_before))
        if not dry_run:
            for upload in uploads:
                self._store.delete_upload(upload)
        return GcReport(
            dry_run=dry_run,
            removed=self._tally.listed,
            removed_total=self._tally.removed,
            removed_bytes=self._tally.removed_bytes,
            uploads=len(uploads),
            uploads_bytes=sum(upload.bytes for upload in uploads),
            kept=self._tally.seen - self._tally.removed,
            kept_bytes=self._tally.seen_bytes - self._tally.removed_bytes,
        )

    def _unreferred(self, referred: set[str]) -> Iterator[StoredFile]:
        for file in self._store.blobs():
            self._tally.see(file)
            if file.digest not in referred and file.put_at < self._before:
                yield file

    def _would_go(self, files: dict[str, StoredFile]) -> list[str]:
        with self._db.read() as session:
            known = artifacts.ages(session, files)
        return [d for d, f in files.items() if known.get(d, f.put_at) < self._limit(d in known)]

    def _limit(self, is_known: bool) -> datetime:
        return self._before if is_known else self._arrived_before

    def _remove(self, files: dict[str, StoredFile]) -> list[str]:
        with self._db.read() as session:
            known = artifacts.ages(session, files)
        candidates = [d for d, f in files.items() if f.put_at < self._limit(d in known)]
        with self._db.write() as session:
            gone = artifacts.forget(
                session, candidates, before=self._before, since=self._started - _SKEW
            )
            if gone:
                audit.record(session, self._by, "gc", f"{len(gone)} blobs", digests=sorted(gone))
        aside = [
            file for digest in sorted(gone) if (file := self._store.set_aside(digest)) is not None
        ]
        return [file.digest for file in self._look_again(aside, files) if self._store.delete(file)]

    def _look_again(
        self, aside: list[StoredFile], listed: dict[str, StoredFile]
    ) -> Iterator[StoredFile]:
        """Those that have stayed as they were; the others are put back."""
        same: list[StoredFile] = []
        for file in aside:
            # Stored again before it was set aside.
            if file.put_at != listed[file.digest].put_at:
                self._store.put_back(file)
            else:
                same.append(file)
        with self._db.read() as session:
            known = artifacts.ages(session, [file.digest for file in same])
        for file in same:
            if file.digest in known:  # whatever refers to it made a row of it first
                self._store.put_back(file)
            else:
                yield file


def _batches(files: Iterable[StoredFile], size: int) -> Iterator[list[StoredFile]]:
    rest = iter(files)
    while batch := list(islice(rest, size)):
        yield batch
