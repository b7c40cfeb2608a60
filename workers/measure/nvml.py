"""Samples a GPU through NVML while it is timed: clocks, power, temperature, other processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from farm.machine.gpus import text
from farm.reports.metrics import GpuWhileTimed, Range

#: Often enough for runs of seconds, and rarely enough not to disturb the host thread.
_EVERY_S = 0.05
#: NVML's reasons for reduced clocks that mean the GPU could do better than measured.
#: Source: nvml.h, nvmlClocksEventReasons.
_SLOWED = {
    0x0000000000000004: "its power limit",
    0x0000000000000008: "a hardware slowdown",
    0x0000000000000020: "its temperature",
    0x0000000000000040: "its temperature (hardware)",
    0x0000000000000080: "the power brake",
}


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
    others: int = 0  #: processes already on the GPU before this one

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


@contextmanager
def watching(uuid: str, others: int = 0) -> Iterator[Telemetry]:
    """Sample a GPU in the background. Without NVML, or on a GPU slice (MIG), fewer values are known."""
    seen = Telemetry(others=others)
    with _handle(uuid) as handle:
        if handle is None:
            yield seen
            return
        nvml, device = handle
        seen.name = text(nvml.nvmlDeviceGetName(device))
        seen.driver = text(nvml.nvmlSystemGetDriverVersion())
        before = _asked(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device))
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(nvml, device, seen, ended), daemon=True)
        sampler.start()
        try:
            yield seen
        finally:
            ended.set()
            sampler.join()
            after = _asked(nvml, lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(device))
            if before is not None and after is not None:
                seen.energy_j = (after - before) / 1e3


def processes_on(uuid: str) -> int:
    """The number of processes computing on a GPU; 0 if NVML doesn't report it."""
    with _handle(uuid) as handle:
        if handle is None:
            return 0
        nvml, device = handle
        return len(_asked(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(device)) or ())


def _sample(nvml: Any, device: Any, seen: Telemetry, ended: threading.Event) -> None:
    sources: Sequence[tuple[list[Any], Callable[[], Any]]] = (
        (seen.sm_mhz, lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)),
        (seen.memory_mhz, lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM)),
        (seen.power_w, lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1e3),
        (
            seen.temperature_c,
            lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
        ),
    )
    while not ended.wait(_EVERY_S):
        for values, ask in sources:
            value = _asked(nvml, ask)
            if value is not None:
                values.append(value)
        reasons = _asked(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)) or 0
        seen.slowed |= {said for bit, said in _SLOWED.items() if reasons & bit}


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
