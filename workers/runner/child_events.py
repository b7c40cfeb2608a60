"""Events of a child, as its worker receives them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """A child printed this."""

    text: str


@dataclass(frozen=True, kw_only=True)
class StageProgressed:
    """A child reached this phase."""

    phase: str
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Nothing happened for a moment: time to look at the clock and the lease."""


ChildEvent = Line | StageProgressed | Tick
