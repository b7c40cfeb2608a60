"""Why a build failed: the jobs that failed by themselves, and the error that reports them."""

from __future__ import annotations

from farm.errors import BuildFailed, StageFailed, from_code
from farm.schemas.builds import BuildView, JobView
from farm.schemas.problems import Failure
from farm.specs.states import JobState


def failures(view: BuildView) -> list[tuple[JobView, Failure]]:
    """The jobs that failed by themselves, not because one before them did, and why."""
    found = [(job, job.error) for job in view.jobs if job.error and job.state is JobState.FAILED]
    return [(job, error) for job, error in found if not job.never_ran] or found


def failed(view: BuildView) -> BuildFailed:
    """The error that says why a build failed, and what to do."""
    causes = failures(view)
    said = "; ".join(f"{view.name_of(job)}: {error.detail}" for job, error in causes)
    hints = dict.fromkeys(error.hint for _, error in causes if error.hint)
    error = BuildFailed(
        f"build {view.id} failed: {said or 'no job says why'}",
        hint="; ".join(hints) or f"read its log: farm logs {view.id}",
    )
    error.view = view
    return error


def is_retryable(error: Failure) -> bool:
    """Whether the same job may succeed if rerun unchanged, for a reason that is known."""
    return type(from_code(error.code)) is StageFailed or from_code(error.code).retryable
