"""How busy a GPU is, from NVML."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from farm.machine.gpus import NoGpu, nvml


@dataclass(frozen=True, kw_only=True)
class GpuLoad:
    """A GPU's load, as of one moment; None where NVML doesn't tell, as of a slice (MIG)."""

    utilization: float | None = None  #: share of time that it was busy, 0 to 1
    memory_used_bytes: float | None = None
    memory_bytes: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """A load as a worker stored it; whatever isn't a number is left out."""
        named = {one.name for one in fields(cls)}
        return cls(
            **{
                name: float(value)
                for name, value in stored.items()
                if name in named and type(value) in (int, float) and math.isfinite(value)
            }
        )

    def known(self) -> Iterator[tuple[str, float]]:
        """What NVML told, by name."""
        for name, value in asdict(self).items():
            if value is not None:
                yield name, value


def gpu_load(uuid: str) -> GpuLoad | None:
    """How busy a GPU is now; None if it or its driver is gone."""
    with suppress(NoGpu), nvml() as lib, suppress(lib.NVMLError):
        device = lib.nvmlDeviceGetHandleByUUID(uuid)

        def asked(ask: Callable[[Any], Any]) -> Any:
            with suppress(lib.NVMLError):
                return ask(device)
            return None

        rates = asked(lib.nvmlDeviceGetUtilizationRates)
        memory = asked(lib.nvmlDeviceGetMemoryInfo)
        power_mw = asked(lib.nvmlDeviceGetPowerUsage)
        return GpuLoad(
            utilization=None if rates is None else rates.gpu / 100,
            memory_used_bytes=None if memory is None else memory.used,
            memory_bytes=None if memory is None else memory.total,
            power_w=None if power_mw is None else power_mw / 1e3,
            temperature_c=asked(
                lambda one: lib.nvmlDeviceGetTemperature(one, lib.NVML_TEMPERATURE_GPU)
            ),
        )
    return None
