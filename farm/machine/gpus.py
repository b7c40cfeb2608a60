"""This machine's GPUs, from NVML, without initialising CUDA."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from farm.errors import InvalidRequest
from farm.specs import gpus

log = logging.getLogger(__name__)


class NoGpu(Exception):
    """This machine has no visible NVIDIA GPU."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    uuid: str
    name: str
    compute_capability: str  #: ``sm_90``
    memory_bytes: int
    is_slice: bool = False  #: a MIG instance

    @property
    def tag(self) -> str | None:
        """Its most specific tag; None for a slice whose NVML name lacks the size."""
        return next(reversed(self.tags), None)

    @property
    def tags(self) -> tuple[str, ...]:
        """The GPU tags it serves: its compute capability, and its product if known.

        A slice serves only its own tag: an engine tuned on it, and its timings, don't apply to the whole GPU.
        """
        product = gpus.product_of(self.name)
        if self.is_slice:
            product = product or gpus.slice_of(self.name, self.compute_capability)
            return (product,) if product else ()
        return (self.compute_capability, *((product,) if product else ()))


def discover() -> list[Gpu]:
    """The GPUs that NVML sees, or their instances in MIG mode; empty without a driver."""
    try:
        return look()
    except NoGpu as err:
        log.debug("%s", err)
        return []


def look() -> list[Gpu]:
    """The GPUs that NVML sees, or their instances in MIG mode.

    Raises:
        NoGpu: there is no driver, or it can't be queried.
    """
    with nvml() as lib:
        return [
            gpu
            for index in range(lib.nvmlDeviceGetCount())
            for gpu in _gpus(lib.nvmlDeviceGetHandleByIndex(index))
        ]


def driver() -> str | None:
    """The version of the NVIDIA driver; None without one."""
    with suppress(NoGpu), nvml() as lib, suppress(lib.NVMLError):
        return text(lib.nvmlSystemGetDriverVersion())
    return None


@contextmanager
def nvml() -> Iterator[Any]:
    """NVML, for as long as the block runs.

    Raises:
        NoGpu: there is no driver, or it can't be queried.
    """
    try:
        import pynvml
    except ImportError as err:
        raise NoGpu("can't detect this machine's GPU: nvidia-ml-py isn't installed") from err
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as err:
        raise NoGpu(f"found no NVIDIA GPU on this machine: {err}") from err
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def visible(found: Sequence[Gpu], wanted: str | None) -> list[Gpu]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` selects, in its order; all if it isn't set.

    Parameters:
        wanted: UUIDs, unique prefixes of UUIDs, or indices in NVML's order.

    Raises:
        InvalidRequest: one of them doesn't exist.
    """
    if wanted is None:
        return list(found)
    chosen = []
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        named = [gpu for gpu in found if gpu.uuid.startswith(word)]
        if word.isdigit() and int(word) < len(found):
            named = [found[int(word)]]
        if len(named) != 1:
            there = ", ".join(f"{gpu.uuid} ({gpu.name})" for gpu in found) or "none"
            raise InvalidRequest(
                f"CUDA_VISIBLE_DEVICES names {word!r}, which isn't one of this machine's GPUs",
                hint=f"its GPUs: {there}",
            )
        chosen += named
    return chosen


def _gpus(whole: Any) -> Iterator[Gpu]:
    """A GPU, or its MIG instances."""
    import pynvml

    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(whole)
    slices = list(_slices(whole))
    for handle in slices or ([] if _in_mig_mode(whole) else [whole]):
        yield Gpu(
            uuid=text(pynvml.nvmlDeviceGetUUID(handle)),
            name=text(pynvml.nvmlDeviceGetName(handle)),
            compute_capability=f"sm_{major}{minor}",
            memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            is_slice=handle is not whole,
        )


def _in_mig_mode(whole: Any) -> bool:
    import pynvml

    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(whole)
    except pynvml.NVMLError:  # a GPU without MIG
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _slices(whole: Any) -> Iterator[Any]:
    import pynvml

    if not _in_mig_mode(whole):
        return
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        with suppress(pynvml.NVMLError):  # not every possible instance exists
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, index)


def text(value: str | bytes) -> str:
    """A string from NVML, which older bindings return as bytes."""
    return value.decode() if isinstance(value, bytes) else value
