"""A worker's heartbeat: the farm knows by it that the worker lives, the worker that its name is its own."""

from __future__ import annotations

import logging
import socket

from farm.database.session import Database
from farm.errors import Unavailable, WorkerNameTaken
from farm.fleet import workers
from farm.fleet.workers import Announcement
from farm.machine.load import gpu_load
from workers.runner.shown import Flower

log = logging.getLogger(__name__)


def require_name(db: Database, name: str, *, holder: str, ttl_s: float) -> None:
    """Return if no other machine, and no other home, has a worker online by this name.

    Another may begin in the same moment: the first to announce itself then has the name.

    Raises:
        WorkerNameTaken, DatabaseUnavailable
    """
    with db.read() as session:
        workers.require_free(session, name, host=socket.gethostname(), holder=holder, ttl_s=ttl_s)


class Heartbeat:
    """Announces a worker by its first beat, and keeps it online by the next ones.

    Parameters:
        ttl_s: how long a name stays a silent worker's.
    """

    def __init__(self, db: Database, me: Announcement, flower: Flower, *, ttl_s: float) -> None:
        self._db = db
        self._me = me
        self._flower = flower
        self._ttl_s = ttl_s
        self.announced = False

    def beat(self) -> bool:
        """Tell that the worker is alive; False if its name is another's.

        While the database is away nobody is told: the next beat makes up for it, and after several the worker
        counts as offline.
        """
        load = gpu_load(self._me.gpu_uuid) if self._me.gpu_uuid else None
        try:
            with self._db.write() as session:
                if not self.announced:
                    workers.announce(session, self._me, ttl_s=self._ttl_s)
                unread = self._flower.unread(self._me.queues) if self.announced else ()
                holds = workers.seen(
                    session, self._me.name, holder=self._me.holder, unread=unread, load=load
                )
        except Unavailable:
            return True
        except WorkerNameTaken as err:
            log.error("%s; %s", err.detail, err.hint)
            return False
        self.announced = True
        if not holds:
            log.error("while this worker was silent another one became %s", self._me.name)
        return holds
