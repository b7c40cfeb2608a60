"""Latency on the host's clock, of several models side by side."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to time one model at one batch size."""

    warmup_s: float = 0.2
    duration_s: float = 1.0
    min_iterations: int = 10
    max_s: float = 3.0  #: ends a slow model's timing before its min_iterations
    slice_s: float = 0.25  #: how long one model runs before it is another's turn

    def settings(self) -> dict[str, float]:
        return asdict(self)


def time_side_by_side(
    runs: Mapping[str, Callable[[], object]], pace: Pace
) -> dict[str, list[float]]:
    """Each run's latencies in seconds. The runs take turns, so that a busy spell hits them all."""
    for run in runs.values():
        _repeat(run, pace.warmup_s)
    latencies: dict[str, list[float]] = {name: [] for name in runs}
    unfinished = list(runs)
    while unfinished:
        for name in unfinished:
            latencies[name] += _repeat(runs[name], pace.slice_s)
        unfinished = [name for name in unfinished if not _is_enough(latencies[name], pace)]
    return latencies


def percentile(latencies: Sequence[float], percent: float) -> float:
    """trtexec's: ``sorted[max(N-1-int((1-p/100)*N), 0)]``, so that the figures compare."""
    ordered = sorted(latencies)
    count = len(ordered)
    return ordered[max(count - 1 - int((1 - percent / 100) * count), 0)]


def latency_ms(latencies: Sequence[float]) -> dict[str, float]:
    """``p50`` … ``p99`` in milliseconds."""
    return {f"p{p}": round(percentile(latencies, p) * 1e3, 4) for p in PERCENTILES}


def samples_per_s(latencies: Sequence[float], batch: int) -> float:
    return round(batch * len(latencies) / sum(latencies), 2)


def cpu_name() -> str:
    """The CPU's product name, as the kernel tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform's word has to do
    return platform.processor() or platform.machine()


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
