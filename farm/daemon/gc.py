"""Garbage collection: removes blobs that nothing in the database refers to, and never any other.

A blob is removed in three steps, and a crash may come after any of them. Its row is deleted in a transaction
that rechecks the references, so that a racing submission either sees the blob or is told to upload it. Its
file is set aside, so that anyone who stores the same blob from then on creates a new file. It is deleted only
if it is still old and unreferenced by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from farm.database import references
from farm.database.base import now
from farm.database.session import Database
from farm.schemas.storage import Blob, GcReport
from farm.specs.counted import counted
from farm.store import artifacts
from farm.store.base import Store, StoredFile
from farm.trust import audit
from farm.trust.callers import THE_FARM, Caller

LISTED = 1000  #: removed blobs listed in a report
_BATCH = 100  #: blobs per transaction: SQLite's other writers wait meanwhile
#: A blob not in the database yet may be about to be added: it is kept this long, however short the grace.
_ARRIVING = timedelta(hours=1)
#: Allowance for clock skew between the farm's machines, and for the duration of a submission.
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
    """Remove unreferenced blobs, and the remains of interrupted uploads.

    Parameters:
        older_than_s: the grace. Blobs stored or requested since then stay, as they may be about to be used.
        dry_run: remove nothing, and report what would be removed.
        by: the caller, for the audit.

    Raises:
        StorageFull, StorageUnavailable, DatabaseUnavailable
    """
    if not dry_run:
        store.spend_reserve()  # on a full disk not even a deletion can be recorded
    try:
        return _Collector(db, store, by, older_than_s=older_than_s).run(dry_run=dry_run)
    finally:
        store.keep_reserve()


def free(db: Database, store: Store, digests: Iterable[str], *, by: Caller) -> int:
    """Remove blobs that a deletion has just left without references; return their size in bytes.

    What is being put again at this moment is left to the next collection.

    Raises:
        StorageUnavailable, DatabaseUnavailable: the next collection removes them.
    """
    collector = _Collector(db, store, by, older_than_s=0)
    found = filter(None, map(store.find, digests))
    removed = 0
    for batch in _batches(found, _BATCH):
        files = {file.digest: file for file in batch}
        with db.read() as session:
            known = artifacts.ages(session, files)
        # A row is written after its file is put: one that is older is of an earlier put.
        settled = {d: file for d, file in files.items() if d in known and file.put_at <= known[d]}
        removed += sum(files[digest].bytes for digest in collector.remove(settled))
    return removed


def take_away(db: Database, store: Store, files: Mapping[str, StoredFile]) -> list[str]:
    """Remove the files of blobs whose rows have just been deleted; return the digests of those removed.

    Parameters:
        files: as they were found before the rows were deleted; one that has been put since stays.
    """
    aside = [file for digest in sorted(files) if (file := store.set_aside(digest)) is not None]
    return [file.digest for file in _look_again(db, store, aside, files) if store.delete(file)]


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
            self._store.put_all_back()  # files that a killed gc had set aside
        with self._db.read() as session:
            referred = references.referred(session)
        for batch in _batches(self._unreferred(referred), _BATCH):
            files = {file.digest: file for file in batch}
            for digest in self._would_go(files) if dry_run else self.remove(files):
                self._tally.remove(files[digest])
        # Nothing resumes an upload whose process died, however long unused blobs are kept.
        uploads = list(self._store.interrupted(self._started - _ARRIVING))
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

    def remove(self, files: Mapping[str, StoredFile]) -> list[str]:
        with self._db.read() as session:
            known = artifacts.ages(session, files)
        candidates = [d for d, f in files.items() if f.put_at < self._limit(d in known)]
        with self._db.write() as session:
            gone = artifacts.forget(
                session, candidates, before=self._before, since=self._started - _SKEW
            )
            if gone:
                audit.record(
                    session, self._by, "gc", counted(len(gone), "blob"), digests=sorted(gone)
                )
        return take_away(self._db, self._store, {digest: files[digest] for digest in gone})


def _look_again(
    db: Database, store: Store, aside: list[StoredFile], listed: Mapping[str, StoredFile]
) -> Iterator[StoredFile]:
    """The files that haven't changed; the others are put back."""
    same: list[StoredFile] = []
    for file in aside:
        # Stored again before it was set aside.
        if file.put_at != listed[file.digest].put_at:
            store.put_back(file)
        else:
            same.append(file)
    with db.read() as session:
        known = artifacts.ages(session, [file.digest for file in same])
    for file in same:
        if file.digest in known:  # whatever refers to it created a row first
            store.put_back(file)
        else:
            yield file


def _batches(files: Iterable[StoredFile], size: int) -> Iterator[list[StoredFile]]:
    rest = iter(files)
    while batch := list(islice(rest, size)):
        yield batch
