"""Follows a job's child: renews the lease, records its output and what it uses, notices cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from farm.errors import ChildOutOfMemory, DatabaseUnavailable, LeaseLost, StageInterrupted
from farm.queue import jobs, leases, samples
from farm.queue.jobs import Claim
from workers.runner.app import Context
from workers.runner.child import Child
from workers.runner.child_events import Line, StageProgressed
from workers.runner.sampler import Sampler
from workers.runner.stage_spans import Phases

_CANCEL_POLL_S = 0.5
_LOG_FLUSH_S = 0.5
#: What ends all processes of a worker may come to the worker itself so much later than to its children.
_LATER_S = 1.0


class Stopping(Exception):
    """The worker is shutting down; it gives its jobs back once all its children have ended."""


@contextmanager
def ended_together(stopping: threading.Event) -> Iterator[None]:
    """Tell what ended a stage alone from what ends all of the worker's processes.

    Raises:
        Stopping: the worker is ended as well.
    """
    try:
        yield
    except StageInterrupted as err:
        if stopping.wait(_LATER_S):
            raise Stopping from err
        raise
    except ChildOutOfMemory:
        # If the worker is killed as well, nobody says that the stage failed: its lease expires. One that is
        # told to stop says so: a service manager may have told it because of this stage's memory.
        time.sleep(_LATER_S)
        raise


class Watch:
    """Follows a child: renews its lease, records its output, notices cancellation."""

    def __init__(self, context: Context, claim: Claim, phases: Phases | None = None) -> None:
        self._context = context
        self._claim = claim
        self._phases = phases or Phases()
        self._text = ""
        self._progress: StageProgressed | None = None
        self._sampler: Sampler | None = None
        at = time.monotonic()
        self._renewed = self._polled = self._flushed = at

    def follow(self, child: Child) -> bool:
        """Follow the child to its end; return whether the job should be cancelled.

        Raises:
            LeaseLost, ChildTimedOut
        """
        gpu = self._context.gpu
        with Sampler(child.pid, gpu.uuid if gpu else None) as self._sampler:
            try:
                for happening in child.events():
                    if isinstance(happening, Line):
                        self._text += happening.text
                    elif isinstance(happening, StageProgressed):
                        self._progress = happening
                        self._phases.reach(happening.phase)
                    self._sampler.look()
                    if self._look():
                        return True
                return False
            finally:
                # Better to lose the end of the log than the job.
                with suppress(DatabaseUnavailable):
                    self._flush(has_ended=True)

    def _look(self) -> bool:
        if self._context.stopping.is_set():
            raise Stopping
        try:
            return self._tell()
        except DatabaseUnavailable as err:
            silent_s = time.monotonic() - self._renewed
            if silent_s > self._context.settings.lease_ttl_s:
                # Another worker may hold the job by now, and we couldn't hear of it.
                raise LeaseLost(f"job {self._claim.job_id}: {err.detail}, past its lease") from err
            return False

    def _tell(self) -> bool:
        at = time.monotonic()
        lease_s = self._context.settings.lease_ttl_s
        if at - self._renewed > lease_s / 3:
            with self._context.db.write() as session:
                leases.renew(session, self._claim.job_id, self._claim.attempt, lease_s=lease_s)
            self._renewed = at
        if at - self._flushed > _LOG_FLUSH_S:
            self._flushed = at
            self._flush()
        if at - self._polled > _CANCEL_POLL_S:
            self._polled = at
            with self._context.db.read() as session:
                return jobs.wants_cancel(session, self._claim.job_id, self._claim.attempt)
        return False

    def _flush(self, *, has_ended: bool = False) -> None:
        text, progress, sampler = self._text, self._progress, self._sampler
        series = sampler.to_keep(has_ended=has_ended) if sampler else None
        if not text and progress is None and series is None:
            return
        job_id, attempt = self._claim.job_id, self._claim.attempt
        with self._context.db.write() as session:
            jobs.report(
                session,
                job_id,
                attempt,
                phase=progress.phase if progress else None,
                progress=progress.share if progress else None,
                text=text,
            )
            if sampler and series:
                samples.keep(session, job_id, attempt, began_at=sampler.began_at, series=series)
        if sampler and series:
            sampler.kept()
        self._text, self._progress = "", None
        if progress:
            share = "" if progress.share is None else f" {progress.share:.0%}"
            self._context.flower.progressed(self._claim, f"{progress.phase}{share}")
