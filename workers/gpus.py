"""The GPUs of this machine, by NVML; no CUDA is touched."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from farm import gpu_tags

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    uuid: str
    name: str
    compute_capability: str  #: ``sm_90``
    memory_bytes: int

    @property
    def tags(self) -> tuple[str, ...]:
        """The GPU tags that it answers to: its compute capability, and its product when known."""
        product = gpu_tags.product_of(self.name)
        return (self.compute_capability, *((product,) if product else ()))


def discover() -> list[Gpu]:
    """The GPUs that NVML sees; none when there is no driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as err:
        log.debug("no NVIDIA driver here: %s", err)
        return []
    try:
        return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        compute_capability=f"sm_{major}{minor}",
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
