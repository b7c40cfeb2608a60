"""The state machine of jobs and builds: pure, no I/O.

A job moves only along ``JOB_TRANSITIONS``; a build's state follows from its jobs' states.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from farm.errors import IllegalTransition
from farm.specs.words import Folded


class JobState(StrEnum):
    WAITING = "waiting"  #: another job must succeed first
    QUEUED = "queued"  #: ready; a message has been or will be sent
    RUNNING = "running"  #: a worker holds its lease
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  #: no build wants it any more


class BuildState(Folded):
    QUEUED = "queued"  #: none of its jobs has started
    RUNNING = "running"
    SUCCEEDED = "succeeded"  #: every engine is in the registry
    FAILED = "failed"  #: at least one engine can't be built
    CANCELLED = "cancelled"


class EngineState(StrEnum):
    """Whether an engine is good enough to serve."""

    READY = "ready"
    DOUBTFUL = (
        "doubtful"  #: built and not broken, and failed a gate: pulled only where it is asked for
    )


class Reuse(StrEnum):
    """How a build came by a job's result."""

    RAN = "ran"  #: the build created the job
    JOINED = "joined"  #: the job was already on its way for another build
    CACHED = "cached"  #: the job had already succeeded


class Requeued(StrEnum):
    """Why an attempt ended with the job back in its queue."""

    LEASE_EXPIRED = "lease-expired"
    INTERRUPTED = "interrupted"  #: by the machine, the store or another external cause
    OTHER_TOOLS = "other-tools"  #: planned with tools that the worker lacks
    SHUT_DOWN = "shut-down"
    REJOINED = "rejoined"  #: a build joined it while it was being cancelled


JOB_TRANSITIONS: frozenset[tuple[JobState, JobState]] = frozenset(
    {
        (JobState.WAITING, JobState.QUEUED),  # its inputs are available
        (JobState.WAITING, JobState.FAILED),  # one of its inputs failed
        (JobState.WAITING, JobState.CANCELLED),
        (JobState.QUEUED, JobState.RUNNING),  # claimed
        (JobState.QUEUED, JobState.CANCELLED),
        (JobState.QUEUED, JobState.FAILED),  # it can't be planned with the current tools
        (JobState.RUNNING, JobState.SUCCEEDED),
        (JobState.RUNNING, JobState.FAILED),
        (JobState.RUNNING, JobState.CANCELLED),
        (JobState.RUNNING, JobState.QUEUED),  # its lease expired: next attempt
        (JobState.SUCCEEDED, JobState.FAILED),  # an output was damaged in the store, or deleted
    }
)

LIVE = frozenset({JobState.WAITING, JobState.QUEUED, JobState.RUNNING})
ENDED = frozenset(JobState) - LIVE

BUILD_LIVE = frozenset({BuildState.QUEUED, BuildState.RUNNING})
BUILD_ENDED = frozenset(BuildState) - BUILD_LIVE


def check_transition(old: JobState, new: JobState) -> None:
    """Raise IllegalTransition unless a job may move from ``old`` to ``new``."""
    if (old, new) not in JOB_TRANSITIONS:
        raise IllegalTransition(f"a job can't go from {old} to {new}")


def build_state(jobs: Iterable[JobState]) -> BuildState:
    """The state of a build whose jobs are in these states.

    A build with a failed job keeps running until its other jobs have ended: every engine that can be built
    is built.
    """
    states = set(jobs)
    if states <= {JobState.SUCCEEDED}:
        return BuildState.SUCCEEDED
    if states <= ENDED:
        return BuildState.CANCELLED if JobState.FAILED not in states else BuildState.FAILED
    if states <= {JobState.WAITING, JobState.QUEUED}:
        return BuildState.QUEUED
    return BuildState.RUNNING
