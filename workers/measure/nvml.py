"""Samples a GPU through NVML while it is timed: clocks, power, temperature, other processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from statistics import median
from typing import Any

from farm.machine.gpus import text
from farm.reports.metrics import GpuWhileTimed, Range

#: Often enough for runs of seconds, and rarely enough not to disturb the host thread.
_EVERY_S = 0.05
#: In how many samples processes are counted once, which takes NVML longer.
_COUNT_EVERY = 5
#: NVML's reasons for reduced clocks that mean the GPU could do better than measured.
#: Source: nvml.h, nvmlClocksEventReasons.
_SLOWED = {
    0x0000000000000004: "its power limit",
    0x0000000000000008: "a hardware slowdown",
    0x0000000000000020: "its temperature",
    0x0000000000000040: "its temperature (hardware)",
    0x0000000000000080: "the power brake",
}


@dataclass(frozen=True, kw_only=True)
class Tenants:
    """The processes on a GPU, so that those of others can be told from the job's own."""

    uuid: str
    own: int = 0  #: of this job, as far as NVML lists them
    others: int = 0  #: there before this job

    @classmethod
    def now(cls, uuid: str, before: int, *, beside: int = 0) -> Tenants:
        """To be called when this process has begun to use the GPU.

        Parameters:
            before: the processes before that.
            beside: those of this job among them.
        """
        pids = pids_on(uuid)
        # By number, if it isn't listed: in a container NVML may give other numbers, or list nobody.
        is_listed = os.getpid() in pids or len(pids) > before
        return cls(uuid=uuid, own=beside + int(is_listed), others=max(before - beside, 0))


@dataclass(kw_only=True)
class Telemetry:
    """Samples of one GPU."""

    name: str | None = None
    driver: str | None = None
    sm_mhz: list[int] = field(default_factory=list)
    memory_mhz: list[int] = field(default_factory=list)
    power_w: list[float] = field(default_factory=list)
    temperature_c: list[int] = field(default_factory=list)
    energy_j: float | None = None
    slowed: set[str] = field(default_factory=set)
    others: int = 0  #: the most processes of others at once

    def report(self) -> GpuWhileTimed:
        """Medians and ranges; null for values that this GPU doesn't report."""
        return GpuWhileTimed(
            name=self.name,
            driver=self.driver,
            sm_clock_mhz=_range(self.sm_mhz),
            memory_clock_mhz=_range(self.memory_mhz),
            power_w=_range(self.power_w),
            temperature_c=_range(self.temperature_c),
            energy_j=None if self.energy_j is None else round(self.energy_j, 1),
            slowed_by=sorted(self.slowed),
            other_processes=self.others,
        )


@dataclass(frozen=True, kw_only=True)
class Use:
    """What a GPU does at one moment, for all its processes; None for what it doesn't report."""

    share: float | None = None  #: of the time in which a kernel ran, 0 to 1
    memory_bytes: int | None = None
    power_w: float | None = None
    sm_mhz: int | None = None


@contextmanager
def asking(uuid: str) -> Iterator[Callable[[], Use] | None]:
    """What asks a GPU for its use, for as long as the block runs; None without NVML."""
    with _handle(uuid) as handle:
        if handle is None:
            yield None
            return
        nvml, device = handle

        def ask() -> Use:
            rates = _asked(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(device))
            memory = _asked(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(device))
            power = _asked(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(device))
            return Use(
                share=None if rates is None else rates.gpu / 100,
                memory_bytes=None if memory is None else memory.used,
                power_w=None if power is None else power / 1e3,
                sm_mhz=_asked(
                    nvml, lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)
                ),
            )

        yield ask


@contextmanager
def watching(tenants: Tenants) -> Iterator[Telemetry]:
    """Sample a GPU in the background. Without NVML, or on a GPU slice (MIG), fewer values are known."""
    seen = Telemetry(others=tenants.others)
    with _handle(tenants.uuid) as handle:
        if handle is None:
            yield seen
            return
        nvml, device = handle
        seen.name = text(nvml.nvmlDeviceGetName(device))
        seen.driver = text(nvml.nvmlSystemGetDriverVersion())
        before = _asked(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device))
        ended = threading.Event()
        arguments = (nvml, device, seen, ended, tenants.own)
        sampler = threading.Thread(target=_sample, args=arguments, daemon=True)
        sampler.start()
        try:
            yield seen
        finally:
            after = _asked(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device))
            ended.set()
            sampler.join()
            if before is not None and after is not None:
                seen.energy_j = (after - before) / 1e3


def pids_on(uuid: str) -> list[int]:
    """The processes computing on a GPU; none if NVML doesn't report them."""
    with _handle(uuid) as handle:
        return [] if handle is None else _pids(*handle)


def _pids(nvml: Any, device: Any) -> list[int]:
    found = _asked(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(device)) or ()
    return [one.pid for one in found]


def _sample(nvml: Any, device: Any, seen: Telemetry, ended: threading.Event, own: int) -> None:
    sources: Sequence[tuple[list[Any], Callable[[], Any]]] = (
        (seen.sm_mhz, lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)),
        (seen.memory_mhz, lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM)),
        (seen.power_w, lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1e3),
        (
            seen.temperature_c,
            lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
        ),
    )
    for turn in count():
        if turn % _COUNT_EVERY == 0:
            seen.others = max(seen.others, len(_pids(nvml, device)) - own)
        if ended.wait(_EVERY_S):
            break
        for values, ask in sources:
            value = _asked(nvml, ask)
            if value is not None:
                values.append(value)
        reasons = _asked(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)) or 0
        seen.slowed |= {said for bit, said in _SLOWED.items() if reasons & bit}
    seen.others = max(seen.others, len(_pids(nvml, device)) - own)


def _asked(nvml: Any, ask: Callable[[], Any]) -> Any:
    """The answer, or None from a GPU that doesn't report it."""
    with suppress(nvml.NVMLError):
        return ask()
    return None


@contextmanager
def _handle(uuid: str) -> Iterator[tuple[Any, Any] | None]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package or no driver: nothing is known
        yield None
        return
    try:
        found = _asked(pynvml, lambda: pynvml.nvmlDeviceGetHandleByUUID(uuid))
        yield None if found is None else (pynvml, found)
    finally:
        pynvml.nvmlShutdown()


def _range(values: Sequence[float]) -> Range | None:
    if not values:
        return None
    return Range(min=min(values), median=round(median(values), 1), max=max(values))
