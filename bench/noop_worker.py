"""Workers whose work is nothing: ``python -m bench.noop_worker farm``, and ``… plain|durable STARTED_FILE``.

The farm's is the real worker with the real task of ``workers.runner.task``. Only the child process is
replaced: a stand-in in its place leaves the small files that the farm's fake stages make. Message,
claim, toolchain check, work folder, log, taking the outputs into the store, finishing with events and
dependents, publishing and ringing for the dependents are the farm's own. What a worker tries once at its
start, the sandbox and the compiler, is left out: it would run beside the first seconds of the jobs.

Celery's are on the same broker, with the same concurrency, and send Flower's events too. The plain one is
as Celery is by itself, with the farm's pool: it acknowledges early, prefetches, and keeps no results. The
durable one loses as little as Celery can: it acknowledges late, prefetches one, and keeps its results in the
farm's database by Celery's own backend; in processes, since in threads that one connects for every task.
Their tasks write down when they start, a line each, and ``first`` sends ``second`` twice: so many jobs does
an export release.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from celery import Celery

from farm.processes import die_with_parent
from farm.queue.celery_app import create_celery
from farm.settings import Settings
from farm.testing.stages import FakeStages
from workers.runner import app, child_events, task
from workers.stages.base import StageRequest

QUEUE, FIRST, SECOND = "bench", "bench.first", "bench.second"
DEPENDENTS = 2


class NoChild:
    """Stands in for ``workers.runner.child.Child``: has ended before it began, and made its outputs."""

    pid = 0  #: it is no process: nobody samples it

    def __init__(self, _function: object, request: StageRequest, **_options: object) -> None:
        self._request = request

    def events(self) -> Iterator[child_events.ChildEvent]:
        return iter(())

    def result(self) -> dict[str, Any]:
        made = FakeStages().run(self._request.kind, self._request.workdir)
        outputs = {str(role): str(path) for role, path in made.outputs.items()}
        return {"outputs": outputs, "facts": dict(made.facts)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def farm() -> None:
    """Be a CPU worker of the farm in ``FARM_HOME``."""
    task.Child = NoChild  # type: ignore[assignment, attr-defined]
    task.await_preload = lambda: None  # type: ignore[assignment, attr-defined]
    app.trial.tried = lambda *_, **__: []  # type: ignore[assignment, attr-defined]
    app.compiles.refusal = lambda *_: "it is a bench's"  # type: ignore[assignment, attr-defined]
    app.await_preload = lambda: None  # type: ignore[assignment, attr-defined]
    app.run_worker("cpu@bench", None, register=task.register)


class Peer(StrEnum):
    """How a worker of Celery's alone is configured."""

    PLAIN = "plain"  #: by its defaults
    DURABLE = "durable"  #: so that it loses as little as it can


def bare(settings: Settings, peer: Peer = Peer.PLAIN) -> Celery:
    """The peer's application."""
    made = create_celery(settings)
    made.conf.worker_disable_prefetch = False
    made.conf.worker_prefetch_multiplier = 4
    if peer is Peer.DURABLE:
        made.conf.update(
            result_backend=f"db+{settings.database}",
            task_ignore_result=False,
            task_acks_late=True,
            task_reject_on_worker_lost=True,
            worker_prefetch_multiplier=1,
        )
    return made


def celery(peer: Peer, started: Path) -> None:
    """Be a bare worker on the broker of the farm in ``FARM_HOME``."""
    settings = Settings()
    celery_app = bare(settings, peer)
    notes = os.open(started, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @celery_app.task(name=FIRST)  # type: ignore[untyped-decorator]
    def first(dependents: int) -> None:
        os.write(notes, f"{time.time()}\n".encode())
        for _ in range(dependents):
            second.apply_async(queue=QUEUE)

    @celery_app.task(name=SECOND)  # type: ignore[untyped-decorator]
    def second() -> None:
        os.write(notes, f"{time.time()}\n".encode())

    celery_app.worker_main(
        [
            "worker",
            "--hostname=bare@bench",
            f"--queues={QUEUE}",
            f"--pool={'prefork' if peer is Peer.DURABLE else 'threads'}",
            f"--concurrency={settings.cpu_slots}",
            "--without-mingle",
            "--without-gossip",
            f"--loglevel={settings.log_level}",
        ]
    )


if __name__ == "__main__":
    die_with_parent(signal.SIGTERM)
    if sys.argv[1] == "farm":
        farm()
    else:
        celery(Peer(sys.argv[1]), Path(sys.argv[2]))
