"""What a child did, as its worker hears of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a child printed."""

    text: str


@dataclass(frozen=True, kw_only=True)
class StageProgressed:
    """Where a child is."""

    phase: str
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Nothing happened for a moment: time to look at the clock and the lease."""


ChildEvent = Line | StageProgressed | Tick
