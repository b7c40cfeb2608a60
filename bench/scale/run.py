"""Runs the bench: a server's start, submissions up to each size of history, and what is measured there."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import make_url

from bench.processes import ROOT, processor_s, wait_for
from bench.scale import crowd
from bench.scale.controls import Controls
from bench.scale.crowd import Threads
from bench.scale.reads import Reads
from farm.daemon.sweep import Sweeper
from farm.database import migrate
from farm.database.base import now
from farm.database.session import Database
from farm.queue.celery_app import create_celery
from farm.queue.doorbell import Doorbell
from farm.settings import Settings

OF_PAIR = 6  #: jobs that a pair of submissions asks for: three, twice
_LONGEST_S = 1800.0
#: Shares of the jobs, that come on top of them: under an old snapshot, and after it.
_PRESSED, _AFTER = 0.1, 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done."""

    jobs: int = 100_000  #: that submissions ask for, in all
    workers: int = 100
    history: Sequence[float] = (0.0, 0.1, 0.5, 1.0)  #: shares of the jobs after which is measured
    steady_s: float = 20.0  #: at half of the rate
    hold_s: float = 0.5  #: how long a job takes meanwhile
    most_open: int = 300
    most_s: float = 720.0  #: after which nothing more is submitted
    explain: bool = False


@dataclass(frozen=True, kw_only=True)
class Fill:
    """As many jobs a second as go through."""

    finished: int
    seconds: float
    submissions: int
    postgres_s: float  #: processors' time
    python_s: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """What was measured at one size of history."""

    told: str
    asked: int  #: jobs, by then
    fill: Fill  #: on the way here
    steady_per_s: float  #: jobs started a second at half of the rate
    start_ms: tuple[float, float]  #: from a submission to its build's start: p50, p99
    wait_ms: tuple[float, float]  #: from when a job can run to its start
    reads_ms: dict[str, float]
    bytes: int  #: the database's
    dead: int  #: rows that the database can't remove yet, or hasn't
    deadlocks: int  #: since the start


@dataclass(kw_only=True)
class Result:
    plan: Plan
    points: list[Point] = field(default_factory=list)
    ran: int = 0
    joined: int = 0
    cached: int = 0
    tables: list[tuple[str, int, int, int]] = field(
        default_factory=list
    )  #: rows, bytes, of indexes
    plans: list[str] = field(default_factory=list)
    postgres: str = ""
    took_s: float = 0.0


def run(plan: Plan) -> Result:
    """Do the plan; print how it goes."""
    began_s = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and stop what was started
    with ExitStack() as stack:
        settings, postmaster = stack.enter_context(_services())
        stage = stack.enter_context(_stage(settings, plan))
        bench = _Bench(settings, plan, stage, postmaster)
        result = bench.run()
    result.took_s = time.monotonic() - began_s
    return result


@contextmanager
def _services() -> Iterator[tuple[Settings, int]]:
    """A Postgres and a Redis of its own, and the former's process."""
    with tempfile.TemporaryDirectory() as folder:
        script = str(ROOT / "scripts" / "services")
        told = subprocess.run(["bash", script, "start", folder], capture_output=True, text=True)
        try:
            if told.returncode:
                sys.exit(f"{told.stderr}\nscripts/services install brings Postgres and Redis")
            lines = (Path(folder) / "env").read_text().splitlines()
            env = dict(line.removeprefix("export ").split("=", 1) for line in lines)
            home = Path(folder) / "home"
            home.mkdir()
            url = make_url(env["FARM_TEST_DATABASE_URL"]).set(drivername="postgresql")
            yield (
                Settings(
                    home=home,
                    database_url=url.render_as_string(hide_password=False),
                    broker_url=env["FARM_TEST_BROKER_URL"],
                ),
                int((Path(folder) / "postgres/data/postmaster.pid").read_text().split()[0]),
            )
        finally:
            subprocess.run(["bash", script, "stop", folder], capture_output=True)
            Path(folder).mkdir(exist_ok=True)  # which stopping has removed


@dataclass(frozen=True, kw_only=True)
class Stage:
    controls: Controls
    processes: Sequence[Any]
    db: Database
    doorbell: Doorbell


@contextmanager
def _stage(settings: Settings, plan: Plan) -> Iterator[Stage]:
    """The database with the farm's schema, the crowd, and the sweep."""
    migrate.upgrade(settings)
    db = Database(settings.database)
    doorbell = Doorbell(db, create_celery(settings))
    controls = Controls()
    controls.most_open.value = plan.most_open
    clients, crew = Threads(threads=16, processes=2), Threads(threads=plan.workers, processes=4)
    processes = crowd.started(settings, controls, clients, crew)
    sweeper = Sweeper(db, doorbell, settings)
    sweeper.start()
    try:
        wait_for(lambda: controls.ready.value >= plan.workers + clients.threads, seconds=120)
        yield Stage(controls=controls, processes=processes, db=db, doorbell=doorbell)
    finally:
        controls.stopped.set()
        sweeper.stop()
        for process in processes:
            process.join(timeout=10)
            process.kill()
        db.dispose()


class _Bench:
    def __init__(self, settings: Settings, plan: Plan, stage: Stage, postmaster: int) -> None:
        self._plan = plan
        self._stage = stage
        self._controls = stage.controls
        self._postmaster = postmaster
        self._reads = Reads(stage.db, stage.doorbell, settings)
        self._began_s = time.monotonic()

    def run(self) -> Result:
        result = Result(plan=self._plan, postgres=str(self._value("SHOW server_version")))
        controls = self._controls
        steady = self._pairs(2 * self._plan.workers * OF_PAIR)
        before = self._fill(steady)  # the first statements, connections and rows
        for share in self._plan.history:
            pairs = max(self._pairs(self._plan.jobs * share), steady)
            filled = self._fill(pairs) if pairs > controls.upto.value else before
            told = f"{controls.asked:,} jobs asked for" if share else "a bare farm"
            result.points.append(self._point(told, filled))
        result.points += self._pressed()
        result.ran, result.joined = int(controls.ran.value), int(controls.joined.value)
        result.cached, result.tables = int(controls.cached.value), self._tables()
        if self._plan.explain:
            result.plans = [plan for name in self._reads.all() for plan in self._plans(name)]
        return result

    def _pressed(self) -> Iterator[Point]:
        """The same while a transaction that began before keeps all dead rows, and after it."""
        with self._stage.db.engine.connect() as held:
            held = held.execution_options(isolation_level="REPEATABLE READ")
            held.execute(text("SELECT count(*) FROM schema_floor"))
            pairs = self._controls.upto.value + self._pairs(self._plan.jobs * _PRESSED)
            yield self._point("the same, under an old snapshot", self._fill(pairs))
        for table in ("jobs", "builds", "tallies", "workers"):
            self._run(f"VACUUM {table}")
        pairs = self._controls.upto.value + self._pairs(self._plan.jobs * _AFTER)
        yield self._point("after it, and a vacuum", self._fill(pairs))

    def _share_s(self, pairs: float) -> float:
        """By when so many pairs should have been submitted; a slower machine has less history."""
        every = self._plan.jobs * (1 + _PRESSED + _AFTER) / OF_PAIR
        return self._plan.most_s * min(1.0, 0.05 + pairs / every)

    @staticmethod
    def _pairs(jobs: float) -> int:
        return round(jobs / OF_PAIR)

    def _fill(self, pairs: float) -> Fill:
        """Submit up to so many pairs, as fast as jobs go through."""
        controls = self._controls
        controls.pairs_per_s.value = controls.hold_s.value = 0
        finished, began_s, done = controls.finished.value, time.monotonic(), controls.pairs.value
        used = self._processors_s()
        controls.upto.value = pairs
        told_s = began_s
        while controls.pairs.value < pairs or not controls.is_idle:
            time.sleep(0.02)
            at_s = time.monotonic()
            if at_s - told_s > 10:
                told_s = at_s
                rate = (controls.finished.value - finished) / (at_s - began_s)
                self._say(f"{controls.asked:,} jobs asked for, {rate:.0f} run a second")
            if at_s - self._began_s > self._share_s(pairs):
                controls.upto.value = pairs = controls.pairs.value  # no more
            if at_s - began_s > _LONGEST_S:
                sys.exit("waited too long")
        seconds = time.monotonic() - began_s
        after = self._processors_s()
        return Fill(
            finished=int(controls.finished.value - finished),
            seconds=seconds,
            submissions=int(2 * (controls.pairs.value - done)),
            postgres_s=after[0] - used[0],
            python_s=after[1] - used[1],
        )

    def _point(self, told: str, fill: Fill) -> Point:
        rate = fill.finished / fill.seconds
        since = now()
        per_s = self._steady(max(rate / 2, 1.0))
        start = self._centiles("builds", "started_at - created_at", since)
        wait = self._centiles("jobs", "started_at - queued_at", since)
        self._say(
            f"{told}: {rate:.0f} jobs/s; at {per_s:.0f}/s start p50 {start[0]:.0f} ms, "
            f"p99 {start[1]:.0f} ms"
        )
        return Point(
            told=told,
            asked=self._controls.asked,
            fill=fill,
            steady_per_s=per_s,
            start_ms=start,
            wait_ms=wait,
            reads_ms=self._reads.times_ms(),
            bytes=self._value("SELECT pg_database_size(current_database())"),
            deadlocks=self._value(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            ),
            dead=self._value("SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables"),
        )

    def _steady(self, jobs_per_s: float) -> float:
        """Submit at a rate for some seconds, jobs taking a while each; return the rate that was."""
        controls, plan = self._controls, self._plan
        finished, began_s = controls.finished.value, time.monotonic()
        controls.hold_s.value, controls.most_open.value = plan.hold_s, 1e9
        controls.pairs_per_s.value = jobs_per_s / (OF_PAIR / 2)
        controls.upto.value = 1e9
        time.sleep(plan.steady_s)
        per_s = (controls.finished.value - finished) / (time.monotonic() - began_s)
        controls.upto.value = 0
        wait_for(lambda: controls.is_idle, seconds=120)
        controls.upto.value, controls.most_open.value = controls.pairs.value, plan.most_open
        return per_s

    def _centiles(self, table: str, took: str, since: datetime) -> tuple[float, float]:
        statement = (
            f"SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP "
            f"(ORDER BY extract(epoch FROM {took})) FROM {table} "
            "WHERE created_at >= :since AND started_at IS NOT NULL"
        )
        half, last = self._value(statement, since=since)
        return half * 1000, last * 1000

    def _tables(self) -> list[tuple[str, int, int, int]]:
        statement = text(
            "SELECT relname, n_live_tup, pg_total_relation_size(relid), pg_indexes_size(relid) "
            "FROM pg_stat_user_tables ORDER BY 3 DESC LIMIT 12"
        )
        with self._stage.db.read() as session:
            return [tuple(row) for row in session.execute(statement)]

    def _plans(self, name: str) -> Iterator[str]:
        yield f"== {name}"
        yield from self._reads.plans(name)

    def _processors_s(self) -> tuple[float, float]:
        """The processors' time of Postgres, and of the crowd with this process."""
        python = sum(processor_s(one.pid) for one in self._stage.processes)
        return processor_s(self._postmaster), python + time.process_time()

    def _value(self, statement: str, **given: Any) -> Any:
        with self._stage.db.read() as session:
            return session.scalar(text(statement), given)

    def _run(self, statement: str) -> None:
        with self._stage.db.engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(statement))

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began_s:6.0f} s  {what}", flush=True)
