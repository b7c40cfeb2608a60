"""What jobs will take, as told by the jobs that have run: read from the database, a bounded number of rows
each."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, ColumnElement, Row, Select, bindparam, select
from sqlalchemy.orm import Session

from farm.database.tables import HAS_RUN, Job
from farm.planning.forecast import FURTHEST, Forecast, Past, forecast

_MOST = 25  #: like jobs that are read, of smaller sources and of larger ones
_KNOWN = 4096
_FOR_S = 30.0


class Sought(NamedTuple):
    """What a job's like have in common with it."""

    kind: str
    runtime: str | None
    precision: str | None
    target: str | None
    source_bytes: int


class History:
    """Forecasts, each remembered for half a minute."""

    def __init__(self, *, for_s: float = _FOR_S) -> None:
        self._for_s = for_s
        self._known: OrderedDict[Sought, tuple[float, Forecast | None]] = OrderedDict()
        self._lock = threading.Lock()

    def forecast(self, session: Session, sought: Sought) -> Forecast | None:
        """What a job will take, or None if none like it has run."""
        at = time.monotonic()
        with self._lock:
            known = self._known.get(sought)
        if known is not None and at - known[0] < self._for_s:
            return known[1]
        found = forecast(sought.source_bytes, sought.target, _past(session, sought))
        with self._lock:
            self._known[sought] = (at, found)
            self._known.move_to_end(sought)
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        return found


def _past(session: Session, sought: Sought) -> Iterator[Past]:
    """The jobs of a kind, runtime and precision that have run, nearest by their source's size."""
    size = sought.source_bytes
    values = {
        "kind": sought.kind,
        "runtime": sought.runtime,
        "precision": sought.precision,
        "size": size,
        "least": int(size / FURTHEST),
        "most": int(size * FURTHEST) + 1,
    }
    for is_larger in (False, True):
        statement = _nearest(
            is_larger,
            has_runtime=sought.runtime is not None,
            has_precision=sought.precision is not None,
        )
        for row in session.connection().execute(statement, values):
            past = read(row)
            if past is not None:
                yield past


@cache
def _nearest(
    is_larger: bool, *, has_runtime: bool, has_precision: bool
) -> Select[*tuple[Any, ...]]:
    """The jobs nearest to a size, of sources that are larger, or else not, the newest first.

    Built once. An index serves ``IS NULL`` and ``=``, not what means both.
    """

    def same(column: Any, name: str, is_given: bool) -> ColumnElement[bool]:
        found: ColumnElement[bool] = column == bindparam(name) if is_given else column.is_(None)
        return found

    size: BindParameter[int] = bindparam("size")
    within = (
        (Job.source_bytes > size) & (Job.source_bytes <= bindparam("most"))
        if is_larger
        else (Job.source_bytes <= size) & (Job.source_bytes >= bindparam("least"))
    )
    # In the index's whole order: Postgres doesn't see that what ``IS NULL`` needs no sorting.
    ordered = (Job.runtime, Job.precision, Job.source_bytes, Job.id)
    order = ordered if is_larger else [column.desc() for column in ordered]
    return (
        select(
            Job.id,
            Job.source_bytes,
            Job.target,
            Job.started_at,
            Job.finished_at,
            # As text: an integer of JSON may be longer than one of SQL.
            Job.facts["peak_memory_bytes"].as_string().label("peak"),
        )
        .where(
            Job.kind == bindparam("kind"),
            same(Job.runtime, "runtime", has_runtime),
            same(Job.precision, "precision", has_precision),
            HAS_RUN,
            within,
        )
        .order_by(*order)
        .limit(_MOST)
    )


def read(row: Row[*tuple[Any, ...]]) -> Past | None:
    """A row as a job of the past; None if its machine's clock went backwards meanwhile."""
    if row.finished_at is None or row.finished_at < row.started_at:
        return None
    # An older farm stored what a job said of itself unchecked.
    peak = str(row.peak)
    return Past(
        id=row.id,
        source_bytes=row.source_bytes,
        target=row.target,
        took_s=(row.finished_at - row.started_at).total_seconds(),
        peak_memory_bytes=int(peak) if peak.isascii() and peak.isdecimal() else None,
    )
