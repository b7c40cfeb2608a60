"""A worker's eye on its store: no job is claimed while that can't be used; what it has lost is put again."""

from __future__ import annotations

import logging
import threading
import time

from farm.daemon import scrub
from farm.database.session import Database
from farm.errors import FarmError, Unavailable
from farm.store import artifacts, proof
from farm.store.base import Blobs

log = logging.getLogger(__name__)

_HEAL_EVERY_S = 60.0
_MOST_LOST = 100
_PROVE_AGAIN_S = 0.5


class StoreWatch:
    """Knows whether the store could be used when it was last tried."""

    def __init__(self, db: Database, store: Blobs) -> None:
        self._db = db
        self._store = store
        self._doubted = False
        self._told = ""

    def doubt(self) -> None:
        """A job was interrupted by the store: look at it before the next."""
        self._doubted = True

    def is_usable(self) -> bool:
        """Whether it is the farm's, and can be written; says so in the log if not, with what to do."""
        if self._doubted:
            self._doubted = not self._proven()
        return not self._doubted

    def wait(self) -> None:
        """Return once the store has been shown to be the farm's, and to work."""
        while not self._proven():
            time.sleep(_PROVE_AGAIN_S)

    def _proven(self) -> bool:
        try:
            proof.prove(self._db, self._store)
            self._store.try_to_write()
        except Unavailable as err:
            if err.detail != self._told:
                log.warning("no jobs are taken: %s; hint: %s", err.detail, err.hint)
                self._told = err.detail
            return False
        self._told = ""
        return True

    def heal_until(self, stopped: threading.Event) -> None:
        """Put what the farm has lost again, where this machine has right copies, now and then."""
        while not stopped.wait(_HEAL_EVERY_S):
            try:
                self.heal()
            except FarmError as err:
                log.warning("%s; lost blobs are looked for again later", err.detail)

    def heal(self) -> None:
        """Put what the farm has lost again, where this machine has right copies.

        Raises:
            Unavailable
        """
        with self._db.read() as session:
            lost = artifacts.lost(session, most=_MOST_LOST)
        for digest in lost:
            scrub.heal(self._db, self._store, digest)
