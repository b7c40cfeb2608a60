"""What a claim costs with 10,000 queued jobs in the database over what it costs with 100.

The time is that of a whole unit of work, as a worker does it: begin, find the first in line, claim
it, commit. The job is given back after it to a place chosen by lot, out of the measured time. Every
queued job is the export of a build of its own, with two jobs that wait for it, as a submission leaves
them.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import RowMapping, Table, insert, select, update

from bench import submissions
from bench.processes import analyze, fresh_database, kinds
from bench.table import Row, row
from farm.builds import submit
from farm.database import migrate
from farm.database.base import Base
from farm.database.session import Database
from farm.database.tables import Artifact, Build, BuildJob, Job, JobInput, Wanted
from farm.fleet.workers import Fleet
from farm.queue import jobs, leases
from farm.schemas.submission import BuildRequest
from farm.settings import Settings
from farm.specs.states import JobState

FEW, MANY = 100, 10_000
CLAIMS = 200
_OWNER = "cpu@bench"


def costs() -> Iterator[Row]:
    """Medians; the two databases take turns."""
    for kind in kinds():
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            queues = [
                Queue(stack.enter_context(fresh_database(kind, Path(folder))), queued)
                for queued in (MANY, FEW)
            ]
            for queue in queues:
                stack.callback(queue.db.dispose)
                queue.claim()  # the first makes the statements
            times = [[queue.claim() for queue in queues] for _ in range(CLAIMS)]
        many, few = (median(side) for side in zip(*times, strict=True))
        yield row(
            f"a claim with {MANY:,} queued jobs over one with {FEW}, {kind}",
            many * 1000,
            few * 1000,
            " ms",
            digits=2,
            most=1.5,
        )


class Queue:
    """A database with so many queued jobs."""

    DIGEST = f"sha256:{'1' * 64}"

    def __init__(self, url: str, queued: int) -> None:
        migrate.upgrade(Settings(database_url=url))
        self.db = Database(url)
        self._submit()
        self._multiply(queued)
        with self.db.read() as session:
            jobs_queued = select(Job.id).where(Job.state == JobState.QUEUED)
            ids = session.scalars(jobs_queued).all()
        assert len(ids) == queued
        self._bell = ids[0]  # a message for any of them makes a worker claim the first in line
        self._places = queued
        self._chance = random.Random(0)

    def claim(self) -> float:
        """Claim a job and give it back; return the seconds that the claim took."""
        start = time.perf_counter()
        with self.db.write() as session:
            claim = jobs.claim_first(
                session, self._bell, owner=_OWNER, lease_s=30.0, longest_s=60.0
            )
        taken = time.perf_counter() - start
        assert claim is not None
        place = self._chance.randrange(self._places)
        with self.db.write() as session:
            leases.release(session, _OWNER, {claim.job_id: claim.attempt})
            session.execute(update(Job).where(Job.id == claim.job_id).values(place=place))
        return taken

    def _submit(self) -> None:
        request = BuildRequest.model_validate(submissions.build(self.DIGEST, 0))
        with self.db.write() as session:
            session.add(Artifact(digest=self.DIGEST, bytes=1))
            session.flush()
            fleet = Fleet.load(session, ttl_s=30)
            terms = submit.Terms(fleet=fleet, runtimes=Settings().runtimes)
            submit.submit_build(session, request, terms)

    def _multiply(self, queued: int) -> None:
        """Copy the one build with all that belongs to it."""
        with self.db.write() as session:
            for model in (Build, Job, JobInput, BuildJob, Wanted):
                table = Base.metadata.tables[model.__tablename__]
                rows = session.execute(select(table)).mappings().all()
                copies = (_copy(table, row, n) for n in range(1, queued) for row in rows)
                session.execute(insert(table), list(copies))
        analyze(self.db)


def _copy(table: Table, row: RowMapping, number: int) -> dict[str, Any]:
    copy: dict[str, Any] = {str(name): value for name, value in row.items()}
    for name in ("id", "job_id", "needs_id", "build_job_id", "measure_job_id"):
        if isinstance(copy.get(name), int):
            copy[name] += 3 * number
    builds_id = "id" if table.name == Build.__tablename__ else "build_id"
    if builds_id in copy:
        copy[builds_id] = f"{number:06}{copy[builds_id][6:]}"
    if "place" in copy:
        copy["place"] = number
    if "key" in copy:
        copy["key"] = f"{copy['key'][:7]}{number:06}{copy['key'][13:]}"
    return copy
