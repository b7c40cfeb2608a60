"""Counts now and then what the store holds, for monitoring."""

from __future__ import annotations

import logging
import threading
import time

from farm.database.base import now
from farm.database.session import Database
from farm.errors import Unavailable
from farm.keeping import usage
from farm.monitoring.figures import Stock

log = logging.getLogger(__name__)

_FIRST_S = 2.0
_EVERY_S = 600.0
#: Counting reads all references, and mustn't take more than this share of a processor.
_MOST_SHARE = 0.01


class Stocktaker(threading.Thread):
    """Runs in every API process."""

    def __init__(self, db: Database) -> None:
        super().__init__(name="stocktaker", daemon=True)
        self._db = db
        self._stopped = threading.Event()
        self._stock: Stock | None = None

    def stop(self) -> None:
        self._stopped.set()
        self.join(timeout=10)

    def latest(self) -> Stock | None:
        """What was counted last."""
        return self._stock

    def run(self) -> None:
        rest_s = _FIRST_S
        while not self._stopped.wait(rest_s):
            began = time.monotonic()
            try:
                self.count()
            except Unavailable as err:
                log.warning("%s; the store isn't counted for now", err.detail)
            except Exception:
                # A bug may cost a round, but must not end the thread.
                log.exception("counting the store hit a bug; it continues")
            rest_s = max(_EVERY_S, (time.monotonic() - began) / _MOST_SHARE)

    def count(self) -> None:
        """Count now.

        Raises:
            Unavailable
        """
        with self._db.read() as session:
            self._stock = Stock(kinds=usage.recorded(session), at=now())
