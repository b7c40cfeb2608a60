"""Workers whose work is nothing: ``python -m bench.noop_worker farm``, and ``… celery STARTED_FILE``.

The farm's is the real worker with the real task of ``workers.runner.task``. Only the child process is
replaced: a stand-in in its place leaves the small files that the farm's fake stages make. Message,
claim, toolchain check, work folder, log, taking the outputs into the store, finishing with events and
dependents, publishing and ringing for the dependents are the farm's own. What a worker tries once at its
start, the sandbox and the compiler, is left out: it would run beside the first seconds of the jobs.

Celery's is an application with the farm's Celery settings on the same broker, with the same pool and
concurrency: it sends Flower's events too, and prefetches nothing. Its tasks write down when they
start, a line each, and ``first`` sends ``second`` twice: so many jobs does an export release.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
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


def bare(settings: Settings) -> Celery:
    """The peer's application."""
    return create_celery(settings)


def celery(started: Path) -> None:
    """Be a bare worker on the broker of the farm in ``FARM_HOME``."""
    settings = Settings()
    celery_app = bare(settings)
    notes = os.open(started, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @celery_app.task(name=FIRST, ignore_result=True)  # type: ignore[untyped-decorator]
    def first(dependents: int) -> None:
        os.write(notes, f"{time.time()}\n".encode())
        for _ in range(dependents):
            second.apply_async(queue=QUEUE)

    @celery_app.task(name=SECOND, ignore_result=True)  # type: ignore[untyped-decorator]
    def second() -> None:
        os.write(notes, f"{time.time()}\n".encode())

    celery_app.worker_main(
        [
            "worker",
            "--hostname=bare@bench",
            f"--queues={QUEUE}",
            "--pool=threads",
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
        celery(Path(sys.argv[2]))
