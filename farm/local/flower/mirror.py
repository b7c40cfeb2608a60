"""Corrects Flower by the database: events get lost, and killed workers send none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from tornado.ioloop import IOLoop

from farm.database.session import Database
from farm.errors import FarmError
from farm.local.flower.queues import Queues
from farm.local.flower.tasks import Attempts, Open
from farm.queue import attempts
from farm.queue.attempts import Attempt

log = logging.getLogger(__name__)

#: Jobs whose attempts are shown after a start.
HISTORY = 2000
_EVERY_S = 1.0
_AT_ONCE = 500
_REPLAYED_AT_ONCE = 100

T = TypeVar("T")


class Mirror(threading.Thread):
    """Reads the database beside Flower's event loop, which is never blocked by it."""

    def __init__(self, db: Database, state: Attempts, queues: Queues, loop: IOLoop) -> None:
        super().__init__(name="mirror", daemon=True)
        self._db = db
        self._state = state
        self._queues = queues
        self._loop = loop
        self._ended: set[tuple[int, int]] = set()
        self._is_replayed = False

    def run(self) -> None:
        told = ""
        while True:
            try:
                self._look()
                told = ""
            except FarmError as err:
                if err.detail != told:
                    log.warning("%s; Flower shows what workers tell it", err.detail)
                    told = err.detail
            except Exception:
                # A bug may cost a round, but must not end the thread.
                log.exception("Flower can't be corrected; it is tried again")
            time.sleep(_EVERY_S)

    def _look(self) -> None:
        with self._db.read() as session:
            self._queues.load(session)
        if not self._is_replayed:
            self._replay()
            self._is_replayed = True
        self._follow()

    def _replay(self) -> None:
        with self._db.read() as session:
            ids = attempts.newest(session, HISTORY)
        for at in range(0, len(ids), _REPLAYED_AT_ONCE):
            with self._db.read() as session:
                found = attempts.of_jobs(session, ids[at : at + _REPLAYED_AT_ONCE])
            self._in_loop(partial(self._replay_all, found))

    def _replay_all(self, found: list[Attempt]) -> None:
        for attempt in found:
            is_queued = attempt.queued_at is not None and attempt.end is None
            if attempt.started_at is not None or is_queued:
                self._state.replay(attempt)

    def _follow(self) -> None:
        """Complete the attempts that have ended without Flower knowing, and say what others are for."""
        looked = self._in_loop(partial(self._state.open, _AT_ONCE))
        if not looked:
            return
        with self._db.read() as session:
            ended = attempts.ended(session, [one[:2] for one in looked])
            wanted = {one.job_id for one in looked if one[:2] in ended or not one.is_known}
            found = attempts.of_jobs(session, wanted) if wanted else []
        # The worker's own event may still be on its way.
        late = ended & self._ended
        self._ended = ended
        self._in_loop(partial(self._correct, looked, found, late))

    def _correct(
        self, looked: list[Open], found: list[Attempt], late: set[tuple[int, int]]
    ) -> None:
        known = {attempt.job.job_id for attempt in found}
        for attempt in found:
            if (attempt.job.job_id, attempt.number) in late:
                self._state.complete(attempt)
            else:
                self._state.learn(attempt.job, attempt.number)
        for one in looked:
            if not one.is_known and one.job_id not in known:
                self._state.forget(one)

    def _in_loop(self, work: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as err:
                done.set_exception(err)

        self._loop.add_callback(run)
        return done.result()
