"""Counters and histograms that survive restarts and deletions, and that all processes share.

What a unit of work counts is written by its last statement, and so exactly if it commits. On Postgres each
process adds to one of a few rows of a series, so that they rarely wait for each other; the rows are locked in
one order, last of all.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from sqlalchemy import TextClause, func, select, text
from sqlalchemy.orm import Session

from farm.database.tables import Tally
from farm.specs.monitoring import TALLIED, Metric

#: Rows of a series on Postgres.
SHARDS = 8
_COUNTED = "farm.tallies"
_INF = "+Inf"

Labels = tuple[str, ...]


@dataclass(kw_only=True)
class Histogram:
    """What was observed with the same labels."""

    counts: dict[float, int] = field(default_factory=lambda: defaultdict(int))  #: not cumulative
    total: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tallies:
    """All that was ever counted."""

    counters: Mapping[str, Mapping[Labels, int]]
    histograms: Mapping[str, Mapping[Labels, Histogram]]


def count(session: Session, metric: Metric, *labels: str, by: int = 1) -> None:
    """Count something, if the unit of work commits."""
    _add(session, metric, labels, "", by, 0.0)


def observe(session: Session, metric: Metric, value: float, *labels: str) -> None:
    """Add a value to a histogram, if the unit of work commits. A clock that went back makes it zero."""
    value = max(value, 0.0)
    bound = next((bound for bound in metric.buckets if value <= bound), math.inf)
    _add(session, metric, labels, _text(bound), 1, value)


def _add(
    session: Session, metric: Metric, labels: Labels, le: str, number: int, total: float
) -> None:
    assert len(labels) == len(metric.labels), metric.name
    counted = session.info.setdefault(_COUNTED, {})
    before = counted.get((metric.name, labels, le), (0, 0.0))
    counted[metric.name, labels, le] = (before[0] + number, before[1] + total)


def settle(session: Session, shard: int) -> None:
    """Write what a unit of work counted: its last statement."""
    counted = session.info.pop(_COUNTED, None)
    if not counted:
        return
    session.flush()
    parameters = {
        f"{name}_{n}": value
        for n, ((metric, labels, le), sums) in enumerate(sorted(counted.items()))
        for name, value in zip(
            _COLUMNS, (metric, json.dumps(labels), le, shard, *sums), strict=True
        )
    }
    session.connection().execute(_write(len(counted)), parameters)


@cache
def _write(rows: int) -> TextClause:
    """Adds so many rows, in one round trip. Text, since SQLAlchemy compiles such an insert anew each time."""
    values = ", ".join(f"({', '.join(f':{name}_{n}' for name in _COLUMNS)})" for n in range(rows))
    more = ", ".join(f"{name} = tallies.{name} + excluded.{name}" for name in ("count", "total"))
    return text(
        f"INSERT INTO tallies ({', '.join(_COLUMNS)}) VALUES {values} "  # noqa: S608
        f"ON CONFLICT ({', '.join(_COLUMNS[:4])}) DO UPDATE SET {more}"
    )


_COLUMNS = ("metric", "labels", "le", "shard", "count", "total")
_READ = select(Tally.metric, Tally.labels, Tally.le, func.sum(Tally.count), func.sum(Tally.total))
_READ = _READ.group_by(Tally.metric, Tally.labels, Tally.le)


def read(session: Session) -> Tallies:
    """All tallies. A metric or a set of labels that this version doesn't know is left out."""
    known = {one.name: one for one in TALLIED}
    counters: dict[str, dict[Labels, int]] = defaultdict(dict)
    histograms: dict[str, dict[Labels, Histogram]] = defaultdict(lambda: defaultdict(Histogram))
    for name, kept, le, number, total in session.execute(_READ):
        metric, labels = known.get(name), tuple(json.loads(kept))
        if metric is None or len(labels) != len(metric.labels):
            continue
        if not le:
            counters[name][labels] = int(number)
            continue
        histogram = histograms[name][labels]
        histogram.counts[float(le)] += int(number)
        histogram.total += total
    return Tallies(counters=counters, histograms=histograms)


def _text(bound: float) -> str:
    return _INF if math.isinf(bound) else str(bound)
