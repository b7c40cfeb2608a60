"""The fleet's timing caches: TensorRT's kernel timings, one cache per GPU and toolchain.

A cache affects a build's speed and kernel choice, never what the engine computes, so job keys don't cover it.
Workers that extend one concurrently merge their entries: a new revision replaces exactly the one it was made
from, or is rejected.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.tables import Artifact, TimingCache
from farm.schemas.fleet import TimingCacheView
from farm.store import artifacts


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What a cache is valid for: TensorRT rejects caches from another GPU or version."""

    gpu: str  #: as NVML names it
    compute_capability: str
    tensorrt: str
    cuda: str  #: its major version


@dataclass(frozen=True, kw_only=True)
class Revision:
    """One revision of a cache; revision 0 means that there is none yet."""

    number: int = 0
    digest: str | None = None


def newest(session: Session, timed: Timed) -> Revision:
    """The newest revision. Renews its blob, since the caller is about to read it."""
    row = session.get(TimingCache, _key(timed))
    if row is None:
        return Revision()
    artifacts.renew(session, row.digest)
    return Revision(number=row.revision, digest=row.digest)


def replace(
    session: Session,
    timed: Timed,
    *,
    instead_of: Revision,
    digest: str,
    size: int,
    entries: int | None,
) -> bool:
    """Replace the revision that a cache was made from; False if another has replaced it already.

    The blob must be in the store already. Counts one more build.
    """
    artifacts.remember(session, digest, size=size)
    made = {"digest": digest, "entries": entries, "updated_at": now()}
    if instead_of.number == 0:
        row = TimingCache(**asdict(timed), revision=1, builds=1, hits=0, **made)
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:
            return False
        return True
    found = session.execute(
        update(TimingCache)
        .where(*_is(timed), TimingCache.revision == instead_of.number)
        .values(revision=TimingCache.revision + 1, builds=TimingCache.builds + 1, **made)
        .returning(TimingCache.revision)
    )
    return found.scalar() is not None


def count_hit(session: Session, timed: Timed) -> None:
    """Count a build that found every entry and so has nothing to add."""
    session.execute(
        update(TimingCache)
        .where(*_is(timed))
        .values(builds=TimingCache.builds + 1, hits=TimingCache.hits + 1, updated_at=now())
    )


def views(session: Session) -> list[TimingCacheView]:
    """All caches, most recently used first."""
    rows = session.execute(
        select(TimingCache, Artifact.bytes)
        .join(Artifact, Artifact.digest == TimingCache.digest)
        .order_by(TimingCache.updated_at.desc(), *_KEY)
    )
    return [_view(row, size) for row, size in rows]


def _view(row: TimingCache, size: int) -> TimingCacheView:
    return TimingCacheView(
        gpu=row.gpu,
        compute_capability=row.compute_capability,
        tensorrt=row.tensorrt,
        cuda=row.cuda,
        digest=row.digest,
        bytes=size,
        revision=row.revision,
        entries=row.entries,
        builds=row.builds,
        hits=row.hits,
        hit_rate=round(row.hits / row.builds, 4),
        updated_at=row.updated_at,
    )


_KEY = (
    TimingCache.gpu,
    TimingCache.compute_capability,
    TimingCache.tensorrt,
    TimingCache.cuda,
)


def _key(timed: Timed) -> tuple[str, ...]:
    return timed.gpu, timed.compute_capability, timed.tensorrt, timed.cuda


def _is(timed: Timed) -> list[ColumnElement[bool]]:
    return [column == value for column, value in zip(_KEY, _key(timed), strict=True)]
