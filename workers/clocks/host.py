"""Measures latency on the host's clock, for several models side by side."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from farm.reports.metrics import PaceView

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to time one model at one batch size."""

    warmup_s: float = 0.2
    duration_s: float = 1.0
    min_iterations: int = 10
    max_s: float = 3.0  #: stops a slow model before its min_iterations
    slice_s: float = 0.25  #: how long a model runs before the next one's turn

    def scaled(self, share: float) -> Pace:
        """The same for this share of the time, as few iterations at least."""
        return replace(
            self,
            warmup_s=self.warmup_s * share,
            duration_s=self.duration_s * share,
            max_s=self.max_s * share,
            slice_s=self.slice_s * share,
        )

    def view(self) -> PaceView:
        return PaceView(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Each run's latencies in seconds, and the share of the CPU that other processes used meanwhile."""

    latencies: dict[str, list[float]]
    others_share: float  #: of all cores, 0…1


def time_side_by_side(runs: Mapping[str, Callable[[], object]], pace: Pace) -> Timings:
    """Time runs in turns, so that a busy spell of the machine affects them all."""
    before = _cpu_times()
    for run in runs.values():
        _repeat(run, pace.warmup_s)
    latencies: dict[str, list[float]] = {name: [] for name in runs}
    unfinished = list(runs)
    while unfinished:
        for name in unfinished:
            latencies[name] += _repeat(runs[name], pace.slice_s)
        unfinished = [name for name in unfinished if not _is_enough(latencies[name], pace)]
    return Timings(latencies=latencies, others_share=_others_share(before, _cpu_times()))


def percentile(latencies: Sequence[float], percent: float) -> float:
    """As trtexec computes it, for comparable figures: ``sorted[max(N-1-int((1-p/100)*N), 0)]``."""
    ordered = sorted(latencies)
    count = len(ordered)
    return ordered[max(count - 1 - int((1 - percent / 100) * count), 0)]


def latency_ms(latencies: Sequence[float]) -> dict[str, float]:
    """``p50`` … ``p99`` in milliseconds."""
    return {f"p{p}": round(percentile(latencies, p) * 1e3, 4) for p in PERCENTILES}


def samples_per_s(latencies: Sequence[float], batch: int) -> float:
    return round(batch * len(latencies) / sum(latencies), 2)


def cpu_name() -> str:
    """The CPU's product name, as the kernel reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: fall back to the platform module
    return platform.processor() or platform.machine()


def _cpu_times() -> tuple[float, float, float]:
    """Seconds so far: of all cores, of all work on them, and of this process."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0.0, 0.0, 0.0  # not Linux: the others' share is unknown and stays zero
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in line.split()[1:9]]
    total = sum(ticks)
    idle = ticks[3] + ticks[4]  # idle, and waiting for the disk
    return total, total - idle, time.process_time()


def _others_share(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    total, busy, own = (end - start for start, end in zip(before, after, strict=True))
    return min(max(busy - own, 0.0) / total, 1.0) if total > 0 else 0.0


def _repeat(run: Callable[[], object], seconds: float) -> list[float]:
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        latencies.append(now - start)
        if now >= end:
            return latencies


def _is_enough(latencies: Sequence[float], pace: Pace) -> bool:
    spent = sum(latencies)
    return spent >= pace.max_s or (
        spent >= pace.duration_s and len(latencies) >= pace.min_iterations
    )
