"""What takes part in jobs beside their stages: it gives inputs of its own, and has its part of what was made.

A hook is a function of the worker and the job it has claimed; :data:`workers.runner.task.HOOKS` names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from farm.queue.jobs import Claim
from workers.runner.app import Context
from workers.runner.made import Made


class Part:
    """A hook's part in one job; this one has none."""

    #: Role → a blob of the store, of inputs that aren't the job's own.
    blobs: Mapping[str, Path] = {}

    def place(self, workdir: Path) -> Mapping[str, Path]:
        """Put inputs into the job's folder; by their roles."""
        del workdir
        return {}

    def made(self, made: Made) -> Made:
        """What is to be kept of what the stage has made."""
        return made

    def kept(self) -> None:
        """The job has succeeded. A failure here doesn't fail the job."""


class Hook(Protocol):
    """Takes part in some jobs."""

    def __call__(self, context: Context, claim: Claim) -> Part: ...
