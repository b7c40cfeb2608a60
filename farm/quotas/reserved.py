"""What a key's jobs are yet expected to take GPUs for: reserved of its minutes until they have ended.

Nothing is kept of it. The jobs in line say it, and those that run, each by how long its like have taken; once
one ends, what it really took is counted instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, bindparam, func, select
from sqlalchemy.orm import Session

from farm.database.tables import IS_IN_LINE, IS_RUNNING, Job
from farm.specs import queues

#: Sources whose sizes differ by less than this are asked for once.
_STEP = 1.05


class Like(NamedTuple):
    """What a job has in common with those that tell how long it will take."""

    kind: str
    runtime: str | None
    precision: str | None
    target: str | None
    source_bytes: int


#: How many seconds a job like this takes; None if none has run.
Expects = Callable[[Session, Like], float | None]


class OfGpus(NamedTuple):
    """Seconds of GPUs of jobs that haven't ended."""

    so_far: float
    expected: float  #: beyond that


_KIN = (Job.kind, Job.runtime, Job.precision, Job.target, Job.source_bytes, Job.queue)
_IN_LINE = (
    select(*_KIN, func.count().label("number"))
    # Any queue: so that SQLite takes the index of what is in line.
    .where(Job.queue >= "", Job.client == bindparam("client"), IS_IN_LINE)
    .group_by(*_KIN)
)
_RUNNING = select(*_KIN, Job.started_at).where(IS_RUNNING, Job.client == bindparam("client"))


def of_live_jobs(session: Session, client: str, at: datetime, expects: Expects | None) -> OfGpus:
    """What a client's jobs that haven't ended take of GPUs.

    Parameters:
        expects: None if only what they took so far matters. A job whose like never ran is expected to take
            nothing.
    """
    so_far = expected = 0.0
    for row in session.execute(_RUNNING, {"client": client}):
        if queues.takes_gpu(row.queue) and row.started_at is not None:
            ran_s = max(0.0, (at - row.started_at).total_seconds())
            so_far += ran_s
            expected += max(0.0, _expected_s(session, _like(row), expects) - ran_s)
    if expects is not None:
        waiting: Counter[Like | None] = Counter()
        for those in session.execute(_IN_LINE, {"client": client}):
            if queues.takes_gpu(those.queue):
                waiting[_like(those)] += those.number
        expected += sum(
            number * _expected_s(session, like, expects) for like, number in waiting.items()
        )
    return OfGpus(so_far, expected)


def _expected_s(session: Session, like: Like | None, expects: Expects | None) -> float:
    return 0.0 if like is None or expects is None else expects(session, like) or 0.0


def _like(row: Row[*tuple[Any, ...]]) -> Like | None:
    if not row.source_bytes:
        return None
    size = round(_STEP ** round(math.log(row.source_bytes, _STEP)))
    return Like(row.kind, row.runtime, row.precision, row.target, size)
