"""Spans of a job's attempt on this worker, and of its stage.

The stage runs in a process that has no network and may be hostile. Its worker makes the spans, by the
times at which it hears of phases.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from farm.queue.jobs import Claim
from farm.specs.runtime import Target
from farm.tracing import spans
from farm.tracing.span import Span

_MOST = 50  #: phases of a stage; the last goes on from there


class Phases:
    """The phases of a stage as spans, one after another."""

    def __init__(self) -> None:
        self._name = ""
        self._span: Span | None = None
        self._left = _MOST

    def reach(self, name: str) -> None:
        """The stage is in this phase now."""
        if name == self._name or not self._left or not spans.is_on():
            return
        self.end()
        self._name, self._span = name, spans.begin(f"phase {name}")
        self._left -= 1

    def end(self) -> None:
        """The last phase has ended."""
        if self._span is not None:
            self._span.end()
            self._span = None


@contextmanager
def attempt(claim: Claim) -> Iterator[None]:
    """The span of an attempt, part of the first build that wants the job, and linked to the others."""
    first, *others = claim.traces or (None,)
    target = Target.parse(claim.target) if claim.target else None
    attributes = {
        "farm.build.id": claim.build,
        "farm.job.id": claim.job_id,
        "farm.job.key": claim.key,
        "farm.job.attempt": claim.attempt,
        "farm.job.reuse": claim.reuse,
        "farm.stage": claim.kind,
        "farm.precision": claim.precision,
        "farm.runtime": target.runtime if target else None,
        "farm.gpu": target.gpu if target else None,
        "messaging.system": "celery",
    }
    with spans.span(
        f"job {claim.kind}",
        "consumer",
        parent=first,
        links=[one for one in others if one is not None],
        attributes=attributes,
    ):
        yield


@contextmanager
def stage(claim: Claim) -> Iterator[Phases]:
    """The span of an attempt's stage, in its process."""
    phases = Phases()
    with spans.span(f"stage {claim.kind}", attributes={"farm.stage": claim.kind}):
        try:
            yield phases
        finally:
            phases.end()
