"""Replans builds with jobs that the workers left because their tools have changed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy.exc import IntegrityError

from farm import logs
from farm.builds.replan import outdated, replan_build, settle, wanting
from farm.database.session import Database
from farm.errors import FarmError, Unavailable
from farm.fleet.workers import Fleet
from farm.queue import jobs
from farm.queue.turns import Bell

log = logging.getLogger(__name__)

_RACES = 10


def replan_outdated(db: Database, *, ttl_s: float) -> list[Bell]:
    """Replan with the current tools; return the bells to ring.

    One build at a time, each in its own unit of work: there may be many.

    Parameters:
        ttl_s: how long a silent worker counts as online.

    Raises:
        Unavailable: the database is unreachable; the rest is replanned next time.
    """
    with db.read() as session:
        left = outdated(session)
    ready: list[Bell] = []
    for job_id in left:
        with logs.handling(job=job_id):
            ready += _replan(db, job_id, ttl_s)
    return ready


def _replan(db: Database, job_id: int, ttl_s: float) -> list[Bell]:
    ready: list[Bell] = []
    try:
        with db.read() as session:
            builds = wanting(session, job_id)
        for build_id in builds:
            ready += _plan_once(db, build_id, job_id, ttl_s)
        with db.write() as session:
            settle(session, job_id)
    except Unavailable:
        raise
    except FarmError as err:
        log.warning("the job can't be replanned: %s", err.detail)
        with db.write() as session:
            jobs.fail_outdated(session, job_id, err)
    return ready


def _plan_once(db: Database, build_id: str, job_id: int, ttl_s: float) -> Sequence[Bell]:
    for race in range(_RACES):
        try:
            with db.write() as session:
                fleet = Fleet.load(session, ttl_s=ttl_s)
                return replan_build(session, build_id, instead_of=job_id, fleet=fleet)
        except IntegrityError:  # a concurrent submission of the same work; the next round sees it
            if race == _RACES - 1:
                raise
    return ()
