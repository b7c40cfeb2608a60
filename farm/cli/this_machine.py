"""The GPUs of this machine, as GPU tags. Asks the driver through NVML; no CUDA is touched."""

from __future__ import annotations

from typing import Any

from farm.errors import InvalidRequest
from farm.specs.gpus import product_of

_HINT = "say which GPU the engine is for: --gpu sm_89, or --gpu cpu for one that needs no GPU"


def gpu_tags() -> list[str]:
    """The tags of this machine's GPUs, each once: the product's, else the compute capability's.

    Raises:
        InvalidRequest: there is no GPU here, or no way to tell.
    """
    try:
        import pynvml
    except ImportError as err:
        raise InvalidRequest(
            "can't tell this machine's GPU: nvidia-ml-py isn't installed", hint=_HINT
        ) from err
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as err:
        raise InvalidRequest(f"found no NVIDIA GPU on this machine: {err}", hint=_HINT) from err
    try:
        tags = [_tag(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    if not tags:
        raise InvalidRequest("found no NVIDIA GPU on this machine", hint=_HINT)
    return list(dict.fromkeys(tags))


def _tag(nvml: Any, index: int) -> str:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    product = product_of(name.decode() if isinstance(name, bytes) else name)
    if product is not None:
        return product
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return f"sm_{major}{minor}"
