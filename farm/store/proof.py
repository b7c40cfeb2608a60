"""Store identity: the API gives the farm's store one, and a worker proves that it has the same store.

A worker with another folder would take jobs and fail all of them, since their inputs are missing.
"""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm.database.session import Database
from farm.database.tables import KnownStore
from farm.errors import StorageUnavailable
from farm.store.base import Blobs, Store


def adopt(db: Database, store: Store) -> None:
    """Make this the farm's store, if the farm has none.

    Raises:
        StorageUnavailable: the farm has another one.
        DatabaseUnavailable
    """
    with db.read() as session:
        is_known = _known(session) is not None
    if not is_known:  # otherwise a store that isn't the farm's, or not yet, is left as it is
        identity = store.identify()
        with suppress(IntegrityError), db.write() as session:  # another API process may be faster
            if _known(session) is None:
                session.add(KnownStore(id=identity))
    prove(db, store)


def prove(db: Database, store: Blobs) -> None:
    """Return if this is the farm's store, raise otherwise.

    Raises:
        StorageUnavailable: it isn't, or the farm has none yet.
        DatabaseUnavailable
    """
    with db.read() as session:
        known = _known(session)
    if known is None:
        raise StorageUnavailable(
            "the farm has no artifact store yet", hint="start the farm's API first: farm api"
        )
    if store.identity() != known:
        raise StorageUnavailable(
            f"{store.address} isn't the farm's artifact store",
            hint="set FARM_STORE to the API's: its folder, mounted here, or its bucket; or to the API's "
            "address, https://…; if you moved the store, move its file id too",
        )


def _known(session: Session) -> str | None:
    return session.scalar(select(KnownStore.id).order_by(KnownStore.created_at).limit(1))
