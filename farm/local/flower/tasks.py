"""Flower's memory: a task is an attempt at a job, with what the database knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from celery.events.state import Task
from flower.events import EventsState

from farm.queue import shown
from farm.queue.attempts import About, Attempt
from farm.specs.states import JobState
from farm.stages import JobKind

#: Slug → header, of the columns of the task list.
COLUMNS = {
    "name": "Job",
    "state": "State",
    "model": "Model",
    "gpu": "GPU",
    "attempt": "Attempt",
    "build": "Build",
    "job": "Page",
    "kwargs": "Progress",
    "runtime": "Runtime",
    "worker": "Worker",
    "received": "Received",
    "uuid": "UUID",
    "exception": "Error",
}
_ENDS = {JobState.SUCCEEDED: "succeeded", JobState.FAILED: "failed", JobState.CANCELLED: "revoked"}
_KINDS = frozenset(map(str, JobKind))


class AttemptTask(Task):  # type: ignore[misc]
    """An attempt at a job."""

    farm_url = ""  #: where links to the farm's pages lead; empty for none
    job: Any = None
    attempt: Any = None
    key: str | None = None
    stage: str | None = None
    model: str | None = None
    gpu: str | None = None
    precision: str | None = None
    build: str | None = None
    other_builds: str | None = None
    is_known = False
    _fields = (
        *("job_page", "build_page", "model", "stage", "precision", "gpu", "attempt", "job"),
        *("build", "other_builds", "key"),
        *Task._fields,
    )

    def event(
        self,
        type_: str,
        timestamp: float | None = None,
        local_received: float | None = None,
        fields: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        if type_ != "progress":
            super().event(type_, timestamp, local_received, fields, **more)
        elif not self.ready:
            # For Celery it would be a state of its own, above STARTED and REVOKED.
            self.kwargs = (fields or {}).get("kwargs")

    def know(self, job: About) -> None:
        """Keep what its job is for."""
        self.stage, self.gpu, self.precision = job.stage, job.gpu, job.precision
        self.model, self.build = job.model, job.build
        self.other_builds = ", ".join(job.other_builds) or None
        self.is_known = True

    @property
    def is_attempt(self) -> bool:
        """Whether this is what it says, and no other program's task."""
        job, attempt = self.job, self.attempt
        are_numbers = type(job) is int and type(attempt) is int and 0 < job < 2**63
        return are_numbers and bool(self.uuid == shown.task_id(job, attempt))

    @property
    def args(self) -> str | None:
        """What the search finds it by."""
        if not self.is_attempt:
            return None
        told = {
            "job": self.job,
            "attempt": self.attempt,
            "build": self.build,
            "model": self.model,
            "gpu": self.gpu,
            "key": self.key,
        }
        return " ".join(f"{name}={value}" for name, value in told.items() if value is not None)

    @property
    def job_page(self) -> str | None:
        is_known = self.farm_url and self.is_attempt
        return f"{self.farm_url}/jobs/{self.job}" if is_known else None

    @property
    def build_page(self) -> str | None:
        return f"{self.farm_url}/builds/{self.build}" if self.farm_url and self.build else None


class Open(NamedTuple):
    """An attempt of which Flower lacks the end, or what it is for."""

    job_id: int
    attempt: int
    is_known: bool


class ByStage:
    """Flower's metrics with the stage as a task's name: titles name models, and so have no end.

    Senders of messages are no workers, and so never go offline.
    """

    def __init__(self, metrics: Any) -> None:
        self._metrics = metrics
        self.is_muted = False

    def observe_task(self, worker: str, event: dict[str, Any], task: AttemptTask) -> None:
        if not self.is_muted:
            kind = str(task.name or "").partition(" ")[0]
            name = kind if kind in _KINDS else "other"
            self._metrics.observe_task(worker, event | {"name": name}, task)

    def observe_worker(self, worker: str, event: dict[str, Any]) -> None:
        self._metrics.observe_worker(worker, event)

    def remove_workers(self, names: set[str]) -> int:
        return int(self._metrics.remove_workers(names - {shown.DOORBELL}))


class Attempts(EventsState):  # type: ignore[misc]
    """Flower's state of events. Used in its event loop alone."""

    Task = AttemptTask

    def __init__(self, **limits: int) -> None:
        super().__init__(**limits)
        self.metrics: Any = ByStage(self.metrics)
        self._open: dict[str, None] = {}  #: uuids, those looked at lately last

    def event(self, event: dict[str, Any]) -> None:
        super().event(event)
        if event["type"].startswith("task-"):
            self._open[event["uuid"]] = None

    def open(self, limit: int) -> list[Open]:
        """Some attempts that have yet to end or be known, and next time others."""
        self._forget_names()
        found = []
        for uuid in list(islice(self._open, limit)):
            del self._open[uuid]
            task = self.tasks.data.get(uuid)
            if task is None or not task.is_attempt or (task.ready and task.is_known):
                continue
            self._open[uuid] = None
            found.append(Open(task.job, task.attempt, task.is_known))
        return found

    def _forget_names(self) -> None:
        """Keep no titles of tasks that are forgotten, as Celery would for ever."""
        if len(self._seen_types) <= 2 * self.max_tasks_in_memory:
            return
        kept = {task.name for task in self.tasks.data.values()}
        for name in self.tasks_by_type.keys() - kept:
            del self.tasks_by_type[name]
        self._seen_types.intersection_update(kept)

    def forget(self, one: Open) -> None:
        """Ask no more for an attempt that the database doesn't have."""
        self._open.pop(shown.task_id(one.job_id, one.attempt), None)

    def learn(self, job: About, attempt: int) -> None:
        """Keep what an attempt's job is for."""
        task = self.tasks.data.get(shown.task_id(job.job_id, attempt))
        if task is not None:
            task.know(job)
            self.search_engine.upsert(task)

    def replay(self, attempt: Attempt) -> None:
        """Take over an attempt that was before Flower started, which no metrics count."""
        self.metrics.is_muted = True
        try:
            self.complete(attempt)
        finally:
            self.metrics.is_muted = False

    def complete(self, attempt: Attempt) -> None:
        """Add what is missing of an attempt: its events were lost, or its worker was killed."""
        fields = shown.attempt_fields(attempt.job.job_id, attempt.number, attempt.job.key)
        for subject, at, more in _events(attempt):
            task = self.tasks.data.get(fields["uuid"])
            if task is not None and (task.ready or getattr(task, subject, None)):
                continue
            sender = shown.DOORBELL if subject == "sent" else attempt.worker
            told = fields | more | {"timestamp": at.timestamp()}
            if sender is not None:
                event = {"type": f"task-{subject}", "hostname": sender, "local_received": None}
                self.event(told | event | {"clock": 0})
            elif task is not None:  # it ended before a worker had it
                task.event(subject, at.timestamp(), None, told)
        self.learn(attempt.job, attempt.number)


def _events(attempt: Attempt) -> Iterator[tuple[str, datetime, dict[str, Any]]]:
    """The subjects of an attempt's events, in order."""
    if attempt.queued_at is not None:
        named = {"name": attempt.job.title, "routing_key": attempt.job.queue}
        yield "sent", attempt.queued_at, named
    if attempt.started_at is not None:
        yield "received", attempt.started_at, {"name": attempt.job.title}
        yield "started", attempt.started_at, {}
    if attempt.end is not None and attempt.ended_at is not None:
        more: dict[str, Any] = {"exception": attempt.failure}
        if attempt.end is JobState.SUCCEEDED:
            more = {"result": "succeeded"}
            if attempt.started_at is not None:
                ran = attempt.ended_at - attempt.started_at
                more["runtime"] = ran.total_seconds()
        yield _ENDS[attempt.end], attempt.ended_at, more
