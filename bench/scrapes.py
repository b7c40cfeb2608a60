"""What a scrape of ``/metrics`` costs with 10,000 builds in the database over what it costs with 100.

The time is that of reading the figures and writing them as text, without what scrapes share for seconds. Of
each size there is a farm whose builds have ended, each with an engine, and one whose builds are all queued.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import insert, select, update

from bench import shelf
from bench.claims import Queue
from bench.processes import analyze, fresh_database, kinds
from bench.table import Row, row
from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import Build, EngineRow, Job, Wanted
from farm.monitoring.figures import Figures
from farm.specs.states import JobState
from farm.store.local import LocalStore

FEW, MANY = 100, 10_000
SCRAPES = 40


def ratio() -> Iterator[Row]:
    """Medians; the two databases take turns."""
    fills: dict[str, Callable[[str, int], Database]] = {
        "ended": _ended,
        "queued": lambda url, builds: Queue(url, builds).db,
    }
    for kind in kinds():
        for told, fill in fills.items():
            with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                dbs = []
                for builds in (MANY, FEW):
                    url = stack.enter_context(fresh_database(kind, Path(folder)))
                    dbs.append(fill(url, builds))
                    stack.callback(dbs[-1].dispose)
                scrapes = [_scrape(db, Path(folder)) for db in dbs]
                for scrape in scrapes:
                    scrape()  # the first makes the statements
                times = [[scrape() for scrape in scrapes] for _ in range(SCRAPES)]
            many, few = (median(side) for side in zip(*times, strict=True))
            yield row(
                f"a scrape with {MANY:,} {told} builds over one with {FEW}, {kind}",
                many * 1000,
                few * 1000,
                " ms",
                most=5,
            )


def _ended(url: str, builds: int) -> Database:
    db = Queue(url, builds).db
    with db.write() as session:
        for table in (Job, Build):
            session.execute(update(table).values(state=JobState.SUCCEEDED, finished_at=now()))
        columns = (Wanted.build_id, Wanted.build_job_id, Wanted.measure_job_id, Build.version_id)
        wanted = session.execute(select(*columns).join(Build, Build.id == Wanted.build_id))
        engines = [
            shelf.engine(n, Queue.DIGEST) | dict(one) for n, one in enumerate(wanted.mappings())
        ]
        session.execute(insert(EngineRow), engines)
    analyze(db)
    return db


def _scrape(db: Database, folder: Path) -> Callable[[], float]:
    figures = Figures(db, LocalStore(folder / "store"), lambda: None, worker_ttl_s=30.0)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(figures)

    def scrape() -> float:
        figures.forget()
        start = time.perf_counter()
        generate_latest(registry)
        return time.perf_counter() - start

    return scrape
