"""What a search tried, within its seconds: told while it runs, and kept."""

from __future__ import annotations

import time
from collections.abc import Callable

from farm.reports.search import Tried
from workers.goals.judging import BROKEN, Judged

#: Entries kept; a search tries far fewer things unless its budget is hours.
_MOST = 300


class Trail:
    """Counts a search's seconds, and what it has tried.

    Parameters:
        progress: is told the phase, and the share of the budget that is spent.
    """

    def __init__(self, budget_s: float, progress: Callable[[str, float | None], None]) -> None:
        self._start = time.monotonic()
        self._budget_s, self._progress = budget_s, progress
        self.tried: list[Tried] = []
        self.left_out = 0

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def left_s(self) -> float:
        return self._budget_s - self.spent_s

    def phase(self, name: str) -> None:
        share = min(1.0, self.spent_s / self._budget_s) if self._budget_s else None
        self._progress(name, share)

    def add(
        self,
        what: str,
        judged: Judged,
        *,
        share: float,
        time_ratio: float,
        since_s: float,
        kept: bool,
        held: Judged | None = None,
        latency_ratio: float | None = None,
    ) -> None:
        """Keep what was tried, and say it in the log."""
        one = Tried(
            what=what[:200],
            drop=_number(judged.drop),
            held_out_drop=None if held is None else _number(held.drop),
            error=_number(judged.error),
            int8_share=min(1.0, max(0.0, share)),
            predicted_time=time_ratio,
            latency_ratio=latency_ratio,
            seconds=round(self.spent_s - since_s, 3),
            kept=kept,
        )
        told = "broken" if one.drop is None else f"drop {one.drop:.4f}"
        beside = "" if one.held_out_drop is None else f" ({one.held_out_drop:.4f} held out)"
        measured = "" if latency_ratio is None else f", measured {latency_ratio:.2f}"
        print(
            f"tried {what}: {told}{beside}, {share:.1%} of the multiplications quantised, predicted time "
            f"{time_ratio:.2f} of floats'{measured}, {one.seconds:.1f} s{', kept' if kept else ''}",
            flush=True,
        )
        if len(self.tried) < _MOST:
            self.tried.append(one)
        else:
            self.left_out += 1


def _number(value: float) -> float | None:
    return None if value >= BROKEN else value
