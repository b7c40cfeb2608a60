"""What people and programs read of a farm, timed, and with the plans of the statements behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from farm.builds import events, expected, explain, listed, loaded, overview, views
from farm.builds.history import History
from farm.database import references
from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import Build
from farm.fleet.workers import Fleet, worker_views
from farm.keeping import retention
from farm.monitoring.figures import Figures
from farm.queue import leases
from farm.queue.doorbell import Doorbell
from farm.registry import catalog
from farm.settings import Settings
from farm.specs.retention import Retention
from farm.store.local import LocalStore

TIMES = 5


class Reads:
    """The reads, by name."""

    def __init__(self, db: Database, doorbell: Doorbell, settings: Settings) -> None:
        self._db = db
        self._doorbell = doorbell
        self._ttl_s = settings.worker_ttl_s
        store = LocalStore(settings.home / "store")
        self._figures = Figures(db, store, lambda: None, worker_ttl_s=self._ttl_s)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._figures)

    def all(self) -> Mapping[str, Callable[[], object]]:
        with self._db.read() as session:
            newest = session.scalar(select(func.max(Build.id))) or ""
        return {
            "builds, newest first": self._of(lambda s: views.builds(s)),
            "builds of a model": self._of(lambda s: views.builds(s, model="model-7")),
            "builds that failed": self._of(lambda s: views.builds(s, state="failed")),
            "a build": self._of(lambda s: self._view(s, newest)),
            "why its jobs ran": self._of(lambda s: explain.explain(s, newest)),
            "its events": self._of(lambda s: events.history(s, newest, 0, 2**62)),
            "the page's overview": self._of(self._overview),
            "models": self._of(lambda s: listed.listed(s, limit=50)),
            "a model's engines": self._of(lambda s: catalog.engines(s, "model-7")),
            "workers": self._of(lambda s: worker_views(s, self._fleet(s))),
            "a scrape of /metrics": self._scrape,
            "the sweep: leases": self._of(leases.running),
            "the sweep: messages": self._ring,
            "rules of retention": self._of(lambda s: retention.due(s, _RULE, at=now())),
            "what refers to files": self._of(references.referred),
        }

    def times_ms(self) -> dict[str, float]:
        """The median of some times each, after one that doesn't count."""
        found = {}
        for name, read in self.all().items():
            read()
            found[name] = median(_timed_ms(read) for _ in range(TIMES))
        return found

    def plans(self, name: str) -> Iterator[str]:
        """The statements of a read, each with its plan as it was executed."""
        with _heard(self._db) as statements:
            self.all()[name]()
        with self._db.engine.connect() as connection:
            for statement, parameters in statements:
                told = connection.exec_driver_sql(
                    f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters
                )
                yield "\n".join([statement, *told.scalars()])

    def _of(self, read: Callable[[Session], object]) -> Callable[[], object]:
        def run() -> object:
            with self._db.read() as session:
                return read(session)

        return run

    def _fleet(self, session: Session) -> Fleet:
        return Fleet.load(session, ttl_s=self._ttl_s)

    def _view(self, session: Session, build_id: str) -> object:
        rows, fleet = loaded.load(session, build_id), self._fleet(session)
        view = views.build(rows, fleet)
        expected.expect(session, view, rows, fleet, History())
        return view

    def _overview(self, session: Session) -> object:
        return overview.overview(session, self._fleet(session), most_live=20, most_ended=10)

    def _scrape(self) -> object:
        self._figures.forget()
        return generate_latest(self._registry)

    def _ring(self) -> None:
        self._doorbell.ring_pending(again_s=3600, longest_wait_s=60)


_RULE = Retention(engines_days=90, intermediates_days=14)


def _timed_ms(read: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    read()
    return (time.perf_counter() - start_s) * 1000


@contextmanager
def _heard(db: Database) -> Iterator[list[tuple[str, Any]]]:
    """The queries that are sent to the database meanwhile."""
    found: list[tuple[str, Any]] = []

    def hear(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            found.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", hear)
    try:
        yield found
    finally:
        event.remove(db.engine, "before_cursor_execute", hear)
