"""Samples what a job's processes use while they run, and what the worker's GPU does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from farm.database.base import now
from farm.queue.samples import MOST
from workers.measure import nvml
from workers.measure.nvml import Use
from workers.sandbox import tree

_FIRST_EVERY_S = 0.1
#: How often what was sampled is kept, besides at the end.
_KEEP_EVERY_S = 5.0
_TICKS_A_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: In ``/proc/PID/stat``, counted from after the name.
_USER, _SYSTEM, _BORN, _RESIDENT = 11, 12, 19, 21


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a job used since the sample before, in the units of ``farm.schemas.samples``."""

    at_s: float
    cpus: float
    memory_bytes: int
    gpu_share: float | None = None
    gpu_memory_bytes: int | None = None
    gpu_power_w: float | None = None
    gpu_clock_mhz: float | None = None


_MOST_OF = {"at_s", "memory_bytes", "gpu_memory_bytes"}
_GPU = [one.name for one in fields(Sample) if one.name.startswith("gpu_")]


def merged(first: Sample, second: Sample) -> Sample:
    """One sample for the time of two: their mean; of memory the larger."""
    later = asdict(second)
    values: dict[str, Any] = {
        name: _merged(name, (one, later[name])) for name, one in asdict(first).items()
    }
    return Sample(**values)


def _merged(name: str, pair: Sequence[float | None]) -> float | None:
    known = [one for one in pair if one is not None]
    if not known:
        return None
    return max(known) if name in _MOST_OF else sum(known) / len(known)


class Series:
    """Samples at an interval that doubles, with neighbours merged, whenever there are ``most``."""

    def __init__(self, most: int = MOST, every_s: float = _FIRST_EVERY_S) -> None:
        self.samples: list[Sample] = []
        self.every_s = every_s
        self._most = most

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        if len(self.samples) < self._most:
            return
        pairs = zip(self.samples[::2], self.samples[1::2], strict=False)
        odd = self.samples[-1:] if len(self.samples) % 2 else []
        self.samples = [*(merged(*pair) for pair in pairs), *odd]
        self.every_s *= 2

    def columns(self) -> dict[str, list[float | None]]:
        """The samples by column; without those of the GPU if it has told nothing."""
        rows = [asdict(one) for one in self.samples]
        names = [one.name for one in fields(Sample)]
        if all(row[name] is None for row in rows for name in _GPU):
            names = [name for name in names if name not in _GPU]
        return {name: [_short(row[name]) for row in rows] for name in names}


def _short(value: float | None) -> float | None:
    return round(value, 2) if isinstance(value, float) else value


class Sampler:
    """Samples the job of a guard; a context in which NVML is open.

    Parameters:
        guard: the PID of the job's guard.
        gpu: the UUID of the worker's GPU.
    """

    def __init__(self, guard: int, gpu: str | None) -> None:
        self._guard = guard
        self._gpu = gpu
        self._open = ExitStack()
        self._ask: Callable[[], Use] | None = None
        self._series = Series()
        self._ticks: Mapping[tuple[int, int], int] = {}
        self._began = self._sampled = self._kept = time.monotonic()
        self._is_kept = True
        self.began_at: datetime = now()

    def __enter__(self) -> Self:
        if self._gpu is not None:
            self._ask = self._open.enter_context(nvml.asking(self._gpu))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def look(self) -> None:
        """Take a sample, if it is time for one."""
        at = time.monotonic()
        passed_s = at - self._sampled
        if passed_s < self._series.every_s:
            return
        processes = _processes(self._guard)
        if not processes:
            self._sampled = at  # its guard hasn't started it yet, or it has ended
            return
        ticks = {one: used for one, (used, _) in processes.items()}
        # What ended meanwhile isn't counted: its last ticks are unknown.
        spent = sum(used - self._ticks.get(one, 0) for one, used in ticks.items())
        use = self._ask() if self._ask else Use()
        self._series.add(
            Sample(
                at_s=at - self._began,
                cpus=spent / _TICKS_A_S / passed_s,
                memory_bytes=sum(resident for _, resident in processes.values()),
                gpu_share=use.share,
                gpu_memory_bytes=use.memory_bytes,
                gpu_power_w=use.power_w,
                gpu_clock_mhz=use.sm_mhz,
            )
        )
        self._ticks, self._sampled, self._is_kept = ticks, at, False

    def to_keep(self, *, has_ended: bool) -> dict[str, list[float | None]] | None:
        """All samples in columns; None if nothing is new, or it isn't time yet to keep it."""
        is_time = has_ended or time.monotonic() - self._kept > _KEEP_EVERY_S
        return self._series.columns() if is_time and not self._is_kept else None

    def kept(self) -> None:
        """What ``to_keep`` gave is kept."""
        self._kept, self._is_kept = time.monotonic(), True


def _processes(guard: int) -> dict[tuple[int, int], tuple[int, int]]:
    """A job's processes (PID, start): each one's CPU time in ticks, and its resident bytes."""
    found = {}
    for pid in tree.of_job(guard):
        with suppress(OSError, ValueError, IndexError):
            # The process chooses its name, which is in brackets.
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            of = text.rpartition(")")[2].split()
            ticks = int(of[_USER]) + int(of[_SYSTEM])
            found[pid, int(of[_BORN])] = (ticks, int(of[_RESIDENT]) * _PAGE_BYTES)
    return found
