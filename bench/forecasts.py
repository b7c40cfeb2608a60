"""How far forecasts are off, and what they cost.

``python -m bench.forecasts [DATABASE_URL]`` foretells each job of a farm's history from the others, by
default of this machine's farm, and compares: once from all others, and once from those of other models
alone, as for a model that is new. ``python -m bench forecasts`` measures a forecast among many jobs.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from sqlalchemy import insert, select, text

from bench.processes import fresh_database, kinds
from bench.table import Row, row
from farm.builds.history import History, Sought, read
from farm.database import migrate
from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import HAS_RUN, Build, BuildJob, Job, Version
from farm.planning.forecast import Past, forecast
from farm.settings import Settings

FEW, MANY = 1_000, 100_000
ROUNDS = 300
_SHORTEST_S = 0.05  #: what takes less counts as this: the clock's noise is no error
_CHUNK = 20_000


class Done(NamedTuple):
    """A job that has run."""

    kind: str
    like: tuple[str | None, ...]  #: its kind, runtime and precision
    model: int
    past: Past


class Error(NamedTuple):
    """How far a forecast is off, as factors of at least 1."""

    kind: str
    took: float
    memory: float | None
    is_within: bool | None  #: its range; None if it has none


def history(db: Database) -> list[Done]:
    """The jobs of a farm that have run."""
    columns = (Job.id, Job.source_bytes, Job.target, Job.started_at, Job.finished_at)
    found: dict[int, Done] = {}
    with db.read() as session:
        rows = session.execute(
            select(
                *columns,
                Job.facts["peak_memory_bytes"].as_string().label("peak"),
                Job.kind,
                Job.runtime,
                Job.precision,
                Version.model_id,
            )
            .join(BuildJob, BuildJob.job_id == Job.id)
            .join(Build, Build.id == BuildJob.build_id)
            .join(Version, Version.id == Build.version_id)
            .where(HAS_RUN, Job.source_bytes.is_not(None))
        )
        for one in rows:
            past = read(one)
            if past is not None:
                like = (one.kind, one.runtime, one.precision)
                found[one.id] = Done(one.kind, like, one.model_id, past)
    return list(found.values())


def errors(done: Sequence[Done], *, of_other_models: bool) -> tuple[list[Error], int]:
    """How far each job's forecast is off, and how many jobs have none."""
    alike: defaultdict[tuple[str | None, ...], list[Done]] = defaultdict(list)
    for one in done:
        alike[one.like].append(one)
    found, unknown = [], 0
    for one in done:
        others = [
            other.past
            for other in alike[one.like]
            if other is not one and not (of_other_models and other.model == one.model)
        ]
        told = forecast(one.past.source_bytes, one.past.target, others)
        if told is None:
            unknown += 1
            continue
        took, peak = told.took_s, one.past.peak_memory_bytes
        memory = told.peak_memory_bytes
        found.append(
            Error(
                kind=one.kind,
                took=_factor(took.expected, one.past.took_s, _SHORTEST_S),
                memory=_factor(memory.expected, peak, 1) if memory and peak else None,
                is_within=took.low <= one.past.took_s <= took.high
                if took.low is not None and took.high is not None
                else None,
            )
        )
    return found, unknown


def _factor(told: float, was: float, least: float) -> float:
    return math.exp(abs(math.log(max(told, least) / max(was, least))))


def show(done: Sequence[Done]) -> None:
    print(f"{len(done)} jobs that took {sum(one.past.took_s for one in done):.0f} s")
    for of_other_models in (False, True):
        found, unknown = errors(done, of_other_models=of_other_models)
        whose = "of other models alone" if of_other_models else "of all others"
        print(f"\nforetold from jobs {whose}: {len(found)}, unknown: {unknown}")
        print(
            f"{'kind':10} {'jobs':>5} {'time p50':>9} {'p90':>6} {'memory p50':>11} {'in p10–p90':>11}"
        )
        for kind in [*dict.fromkeys(one.kind for one in found), "all"]:
            _line(kind, [one for one in found if kind in (one.kind, "all")])


def _line(kind: str, found: Sequence[Error]) -> None:
    took = [one.took for one in found]
    memory = [one.memory for one in found if one.memory is not None]
    within = [one.is_within for one in found if one.is_within is not None]
    last = quantiles(took, n=10)[-1] if len(took) > 1 else took[0]
    share = f"{sum(within) / len(within):.0%}" if within else "–"
    of_memory = f"{median(memory):.2f}×" if memory else "–"
    print(f"{kind:10} {len(found):5} {median(took):8.2f}× {last:5.2f}× {of_memory:>11} {share:>11}")


def costs() -> Iterator[Row]:
    """A forecast among many jobs that ran, over one among few: the median of many."""
    for kind in kinds():
        with tempfile.TemporaryDirectory() as folder, fresh_database(kind, Path(folder)) as url:
            migrate.upgrade(Settings(home=Path(folder), database_url=url))
            db = Database(url)
            _fill(db, FEW)
            few = _cost_s(db)
            _fill(db, MANY - FEW)
            many = _cost_s(db)
            db.dispose()
        yield row(
            f"forecast of a job among {MANY:,} that ran, beside among {FEW:,}, {kind}",
            many * 1000,
            few * 1000,
            " ms",
            digits=2,
            most=2.0,
        )


_OF = (
    ("export", None, None),
    ("cast", None, "fp16"),
    ("build", "tensorrt-rtx", "fp16"),
    ("measure", None, "fp16"),
)


def _fill(db: Database, number: int) -> None:
    chance, at = random.Random(number), now()
    with db.write() as session:
        for first in range(0, number, _CHUNK):
            rows = [_job(chance, at) for _ in range(min(_CHUNK, number - first))]
            session.execute(insert(Job), rows)
    if not db.is_sqlite:  # as autovacuum would in a minute
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def _job(chance: random.Random, at: Any) -> dict[str, Any]:
    kind, runtime, precision = chance.choice(_OF)
    return {
        "key": f"{chance.getrandbits(256):064x}",
        "kind": kind,
        "title": kind,
        "state": "succeeded",
        "recipe": {"inputs": {}},
        "runtime": runtime,
        "precision": precision,
        "target": runtime and f"{runtime}:sm_89",
        "source_bytes": int(10 ** chance.uniform(5, 10)),
        "queue": "cpu",
        "priority": 5,
        "facts": {"peak_memory_bytes": chance.randrange(10**10), "layers": ["x" * 50] * 40},
        "started_at": at,
        "finished_at": at + timedelta(seconds=chance.uniform(1, 100)),
    }


def _cost_s(db: Database) -> float:
    chance, known = random.Random(0), History(for_s=0)
    took = []
    with db.read() as session:
        for _ in range(ROUNDS):
            sought = Sought("build", "tensorrt-rtx", "fp16", None, int(10 ** chance.uniform(5, 10)))
            start = time.perf_counter()
            assert known.forecast(session, sought)
            took.append(time.perf_counter() - start)
    return median(took)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.forecasts", description=__doc__)
    parser.add_argument("url", nargs="?", default=Settings().database, metavar="DATABASE_URL")
    db = Database(parser.parse_args().url)
    done = history(db)
    db.dispose()
    if len(done) < 2:
        parser.error("the farm has run too few jobs")
    show(done)


if __name__ == "__main__":
    main()
