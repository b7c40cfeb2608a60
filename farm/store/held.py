"""How much of the store each client holds in uploads that no build has used, and its limit.

An upload counts from its first byte until a build uses it or it is deleted. Room is taken before bytes are
read, so that two uploads at once can't pass the limit together.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from anyio import CancelScope, to_thread
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import Artifact, Upload
from farm.errors import FarmError, UploadsUnused
from farm.store import artifacts
from farm.store.base import Stored
from farm.store.sessions import LASTS_S

_LOCK = 0x66726D75  # an arbitrary constant: the first key of Postgres's advisory locks
_AHEAD_BYTES = 16 * 2**20  #: taken at once of an upload that doesn't say how long it is
_TOLD = 3


@dataclass(frozen=True, kw_only=True)
class Stock:
    """All that a client stores: its uploads, and what its builds made.

    Parameters:
        limit: in bytes; None for none.
        refused: the error for an upload of so many bytes when so many are stored.
    """

    client: str
    limit: int | None
    refused: Callable[[int, int], FarmError]


class Hold:
    """The room that one upload takes of what its owner may hold.

    Parameters:
        most_bytes: the owner's limit; None for none, of an administrator for instance.
        stored: the limit of what the owner may store in all; None for none.
        upload: of an upload in several requests, its id.
        announced: how many bytes are to come, if the client says so.
    """

    def __init__(
        self,
        db: Database,
        owner: str,
        most_bytes: int | None,
        *,
        stored: Stock | None = None,
        upload: str | None = None,
        announced: int | None = None,
    ) -> None:
        self._db = db
        self._owner, self._most, self._stock = owner, most_bytes, stored
        self._counts = most_bytes is not None or (stored is not None and stored.limit is not None)
        self._id = upload or secrets.token_hex(16)
        self._announced = announced
        self._taken = 0

    async def through(
        self, chunks: AsyncIterator[bytes], *, start: int = 0
    ) -> AsyncIterator[bytes]:
        """The chunks, with room taken before they are passed on.

        Parameters:
            start: the bytes of the upload that are there already.

        Raises:
            UploadsUnused, QuotaExceeded
        """
        size = start
        if self._announced is None:
            await self._take(start + 1, start + _AHEAD_BYTES)
        else:
            await self._take(start + self._announced, start + self._announced)
        async for chunk in chunks:
            size += len(chunk)
            await self._take(size, size + _AHEAD_BYTES)
            yield chunk

    async def _take(self, least: int, wished: int) -> None:
        if self._counts and least > self._taken:
            self._taken = await to_thread.run_sync(self._granted, least, wished)

    def _granted(self, least: int, wished: int) -> int:
        with self._db.write() as session:
            _lock(session, self._owner)
            _expire(session)
            granted = wished
            if self._most is not None:
                room = self._most - _bytes_of(session, self._owner, but=self._id)
                if least > room:
                    raise _refusal(session, self._owner, self._most, least - max(room, 0))
                granted = min(granted, room)
            if self._stock is not None and self._stock.limit is not None:
                granted = min(granted, self._of_stock(session, self._stock, least))
            _put(session, self._id, self._owner, granted)
        return granted

    def _of_stock(self, session: Session, stock: Stock, least: int) -> int:
        """What is left of all that the owner may store.

        Raises:
            QuotaExceeded
        """
        arriving = _bytes_of(session, self._owner, but=self._id, only_arriving=True)
        used = artifacts.owned_bytes(session, stock.client) + arriving
        room = (stock.limit or 0) - used
        if least > room:
            raise stock.refused(used, least)
        return room

    async def rest(self, size: int) -> None:
        """Have the upload take what is there of it, between two requests; nothing once it has ended."""
        if not self._counts:
            return
        with CancelScope(shield=True):
            await to_thread.run_sync(self._rest, size)

    def _rest(self, size: int) -> None:
        with self._db.write() as session:
            if size:
                _put(session, self._id, self._owner, size)
            else:
                drop(session, self._id)

    @asynccontextmanager
    async def until_stored(self) -> AsyncIterator[None]:
        """Give the room back if the block fails."""
        try:
            yield
        except BaseException:
            await self.rest(0)
            raise

    def stored(self, session: Session, stored: Stored) -> None:
        """Remember the upload's blob, which counts from now on unless the farm has used it before."""
        counts = self._most is not None and _is_unused(session, stored.digest)
        owner = None if self._stock is None else self._stock.client
        artifacts.remember(session, stored.digest, size=stored.bytes, owner=owner)
        mine = (Upload.owner == self._owner) & (Upload.digest == stored.digest)
        session.execute(delete(Upload).where(mine | (Upload.id == self._id)))
        if counts:
            session.add(
                Upload(id=self._id, owner=self._owner, digest=stored.digest, bytes=stored.bytes)
            )


def drop(session: Session, upload: str) -> None:
    """An upload ended without a blob."""
    session.execute(delete(Upload).where(Upload.id == upload))


def settle(session: Session, digests: Collection[str]) -> None:
    """These are used now, and count for nobody."""
    session.execute(delete(Upload).where(Upload.digest.in_(digests)))


def unused(session: Session) -> tuple[int, int]:
    """The uploads that count, of everybody: how many there are, and their bytes."""
    files, size = session.execute(select(func.count(), func.sum(Upload.bytes))).one()
    return files, size or 0


def _lock(session: Session, owner: str) -> None:
    """Keep out other uploads of this owner until this unit of work ends. SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(owner))))


def _expire(session: Session) -> None:
    """Forget uploads that ended without a word, with a process of the API."""
    rested = Upload.digest.is_(None) & (Upload.at < now() - timedelta(seconds=LASTS_S))
    session.execute(delete(Upload).where(rested))


def _bytes_of(session: Session, owner: str, *, but: str, only_arriving: bool = False) -> int:
    held = select(func.sum(Upload.bytes)).where(Upload.owner == owner, Upload.id != but)
    if only_arriving:
        held = held.where(Upload.digest.is_(None))
    return int(session.scalar(held) or 0)


def _put(session: Session, upload: str, owner: str, size: int) -> None:
    values = {"bytes": size, "at": now()}
    changed = update(Upload).where(Upload.id == upload).values(values).returning(Upload.id)
    if session.execute(changed).first() is None:
        session.add(Upload(id=upload, owner=owner, digest=None, **values))


def _is_unused(session: Session, digest: str) -> bool:
    """Whether a blob is new, or counts for somebody already."""
    if session.get(Artifact, digest) is None:
        return True
    return session.scalar(select(Upload.id).where(Upload.digest == digest).limit(1)) is not None


def _refusal(session: Session, owner: str, most: int, lacking: int) -> UploadsUnused:
    largest = session.scalars(
        select(Upload.digest)
        .where(Upload.owner == owner, Upload.digest.is_not(None))
        .order_by(Upload.bytes.desc())
        .limit(_TOLD)
    ).all()
    which = "; ".join(f"farm delete {digest}" for digest in largest)
    return UploadsUnused(
        f"a key may hold {most} bytes in uploads that no build uses; with this one you would hold "
        f"{lacking} more",
        hint="submit them, or delete what you don't need"
        + (f" ({which})" if which else "; unfinished ones count, too")
        + "; FARM_MAX_UNUSED_BYTES on the API is the limit of each key",
    )
