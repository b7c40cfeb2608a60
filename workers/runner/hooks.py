"""Hooks: they add inputs to a job besides its stage's own, and take their share of its outputs.

A hook is a function of the worker and the claimed job; :data:`workers.runner.task.HOOKS` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from farm.queue.jobs import Claim
from workers.runner.app import Context
from workers.runner.made import Made


class Part:
    """A hook's part in one job; the base class does nothing."""

    #: Inputs besides the job's own: role → digest.
    blobs: Mapping[str, str] = {}

    def place(self, workdir: Path) -> Mapping[str, Path]:
        """Put inputs into the job's folder; return them by role."""
        del workdir
        return {}

    def made(self, made: Made) -> Made:
        """Return the part of the stage's outputs to keep."""
        return made

    def kept(self) -> None:
        """Called when the job has succeeded. A failure here doesn't fail the job."""


class Hook(Protocol):
    """Takes part in some jobs."""

    def __call__(self, context: Context, claim: Claim) -> Part: ...
