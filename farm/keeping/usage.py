"""Adds up what the store holds, by kind and by model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from farm.database import references
from farm.database.base import now
from farm.database.declared import Holds
from farm.database.references import Reference
from farm.database.tables import (
    IS_KEPT,
    Artifact,
    Build,
    BuildJob,
    EngineRow,
    JobLog,
    Model,
    Version,
)
from farm.registry import names
from farm.schemas.storage import GcReport
from farm.schemas.usage import FileKind, Files, ModelUsage, Usage
from farm.specs.roles import Role
from farm.store import held
from farm.store.base import Store

_ORDER = list(FileKind)
_OF_HOLDS = {
    Holds.SOURCE: FileKind.SOURCES,
    Holds.ENGINE: FileKind.ENGINES,
    Holds.TIMING_CACHE: FileKind.TIMING_CACHES,
    Holds.PLUGIN: FileKind.PLUGINS,
    Holds.PUSHED: FileKind.PUSHED,
}
_OF_OUTPUT: Mapping[str, FileKind] = {
    Role.ENGINE: FileKind.ENGINES,
    Role.LAYERS: FileKind.REPORTS,
    Role.REPORT: FileKind.REPORTS,
    Role.PEERS: FileKind.REPORTS,
    Role.TIMING_CACHE: FileKind.TIMING_CACHES,
}


@dataclass(frozen=True, kw_only=True)
class _Owners:
    """Rows → the names of the models they are of."""

    versions: Mapping[int, str]
    builds: Mapping[str, str]
    engines: Mapping[str, str]
    jobs: Mapping[int, Collection[str]]

    def of(self, one: Reference) -> Collection[str]:
        match one.holds:
            # What was submitted since these were read has no owner yet.
            case Holds.SOURCE:
                found = self.versions.get(one.row)
            case Holds.DATA:
                found = self.builds.get(one.row)
            case Holds.ENGINE:
                found = self.engines.get(one.row)
            case Holds.OUTPUT | Holds.INPUT:
                return self.jobs.get(one.row, ())
            case _:
                return ()
        return () if found is None else (found,)


def usage(
    session: Session,
    store: Store,
    collected: GcReport,
    model: str | None = None,
    *,
    most_unused: int = 0,
) -> Usage:
    """What takes the store's disk.

    Parameters:
        collected: what a garbage collection would remove.
        model: only this one in the list of models.
        most_unused: the limit of a key's unused uploads; 0 for none.

    Raises:
        NotFound, NameAmbiguous
    """
    only = names.named(session, model).name if model else None
    models: defaultdict[str, dict[str, FileKind]] = defaultdict(dict)
    owners = _owners(session)
    kinds: dict[str, FileKind] = {}
    for one, kind in _named(session):
        kinds[one.digest] = _first(kind, kinds.get(one.digest))
        for name in owners.of(one):
            models[name][one.digest] = _first(kind, models[name].get(one.digest))
    sizes = {file.digest: file.bytes for file in store.blobs()}
    uploads = list(store.interrupted(now()))
    unused = held.unused(session)
    return Usage(
        files=len(sizes),
        bytes=sum(sizes.values()),
        kinds=_by_kind(_of_all(kinds, sizes), sizes),
        models=sorted(
            (made for made in _models(models, sizes) if only in (None, made.model)),
            key=lambda made: (-made.bytes, made.model),
        ),
        interrupted_uploads=Files(files=len(uploads), bytes=sum(one.bytes for one in uploads)),
        unused_uploads=Files(files=unused[0], bytes=unused[1]),
        unused_limit_bytes=most_unused or None,
        log_bytes=session.scalar(select(func.sum(func.length(JobLog.text)))) or 0,
        gc=Files(
            files=collected.removed_total + collected.uploads,
            bytes=collected.removed_bytes + collected.uploads_bytes,
        ),
        free_bytes=store.free_bytes(),
    )


def recorded(session: Session) -> dict[FileKind, Files]:
    """The files that the database has on record, by kind: what the store holds, without asking it."""
    kinds: dict[str, FileKind] = {}
    for one, kind in _named(session):
        kinds[one.digest] = _first(kind, kinds.get(one.digest))
    known = session.execute(
        select(Artifact.digest, Artifact.bytes).where(Artifact.lost_at.is_(None))
    )
    sizes = dict(known.tuples().all())
    return _by_kind(_of_all(kinds, sizes), sizes)


def _named(session: Session) -> Iterator[tuple[Reference, FileKind]]:
    for one in references.every(session):
        yield one, _kind(one)


def _of_all(kinds: Mapping[str, FileKind], sizes: Mapping[str, int]) -> dict[str, FileKind]:
    return {digest: kinds.get(digest, FileKind.UNREFERENCED) for digest in sizes}


def _kind(one: Reference) -> FileKind:
    if one.holds in (Holds.DATA, Holds.INPUT):
        return FileKind.SOURCES if one.role == Role.SOURCE else FileKind.DATA
    if one.holds == Holds.OUTPUT:
        return _OF_OUTPUT.get(one.role, FileKind.INTERMEDIATES)
    return _OF_HOLDS[one.holds]


def _first(kind: FileKind, before: FileKind | None) -> FileKind:
    return kind if before is None else min(kind, before, key=_ORDER.index)


def _by_kind(kinds: Mapping[str, FileKind], sizes: Mapping[str, int]) -> dict[FileKind, Files]:
    found: defaultdict[FileKind, list[int]] = defaultdict(list)
    for digest, kind in kinds.items():
        found[kind].append(sizes[digest])
    return {kind: Files(files=len(found[kind]), bytes=sum(found[kind])) for kind in _ORDER}


def _models(
    models: Mapping[str, Mapping[str, FileKind]], sizes: Mapping[str, int]
) -> Iterator[ModelUsage]:
    named: defaultdict[str, int] = defaultdict(int)
    for files in models.values():
        for digest in files:
            named[digest] += 1
    for name, files in models.items():
        there = {digest: kind for digest, kind in files.items() if digest in sizes}
        yield ModelUsage(
            model=name,
            files=len(there),
            bytes=sum(sizes[digest] for digest in there),
            shared_bytes=sum(sizes[digest] for digest in there if named[digest] > 1),
            kinds=_by_kind(there, sizes),
        )


def _owners(session: Session) -> _Owners:
    versions = dict(
        session.execute(
            select(Version.id, Model.name).join(Model, Model.id == Version.model_id).where(IS_KEPT)
        )
        .tuples()
        .all()
    )
    builds = {
        build_id: versions[version_id]
        for build_id, version_id in session.execute(select(Build.id, Build.version_id))
        if version_id in versions
    }
    engines = {
        engine_id: versions[version_id]
        for engine_id, version_id in session.execute(select(EngineRow.id, EngineRow.version_id))
        if version_id in versions
    }
    jobs: defaultdict[int, set[str]] = defaultdict(set)
    for build_id, job_id in session.execute(select(BuildJob.build_id, BuildJob.job_id)):
        if build_id in builds:
            jobs[job_id].add(builds[build_id])
    return _Owners(versions=versions, builds=builds, engines=engines, jobs=jobs)
