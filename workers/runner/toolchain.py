"""The versions of this worker's packages, read from their metadata: none is imported."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from types import MappingProxyType

from farm.machine import facts
from farm.planning.keys import RUNTIME_TOOLS
from farm.specs.runtime import Runtime
from workers.backends.aotinductor import compiler

#: Name in a key → distributions it may be installed as.
_DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    **facts.DISTRIBUTIONS,
    "onnx": ("onnx",),
    "onnx-ir": ("onnx-ir",),
    "onnxscript": ("onnxscript",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "ml-dtypes": ("ml-dtypes",),
    "nvidia-modelopt": ("nvidia-modelopt",),
    "onnx-graphsurgeon": ("onnx-graphsurgeon",),
    "onnxslim": ("onnxslim",),
    "pillow": ("pillow",),
    "polygraphy": ("polygraphy",),
    "tensorflow": ("tensorflow-cpu", "tensorflow"),
    "tf2onnx": ("tf2onnx",),
    "triton": ("triton", "pytorch-triton"),
}
_REQUIRED = ("torch", "onnx", "onnxscript", "onnxruntime", "nvidia-modelopt")


_FRESH_S = 10.0


def installed() -> Mapping[str, str]:
    """Installed tools: tool → version, at most ten seconds old."""
    return _installed(int(time.monotonic() / _FRESH_S))


# A lookup takes 5 ms and every job does one. Not cached forever: a package may be upgraded under a
# running worker, whose children import some packages only then.
@lru_cache(maxsize=1)
def _installed(_moment: int) -> Mapping[str, str]:
    # Triton comes with builds of torch for GPUs, and only those need it.
    found = {"python": platform.python_version(), "triton": "none"} | dict(
        facts.installed(_DISTRIBUTIONS)
    )
    return MappingProxyType(found | dict(compiler.tools()))


def cuda_of_tensorrt() -> str:
    """The CUDA major version that the installed TensorRT was built for, or ``unknown``."""
    for name in _DISTRIBUTIONS["tensorrt"]:
        major = name.partition("-cu")[2]
        with suppress(metadata.PackageNotFoundError):
            if major and metadata.version(name):
                return major
    return "unknown"


def missing() -> list[str]:
    """The packages every worker needs and this one lacks."""
    there = installed()
    return [name for name in _REQUIRED if name not in there]


def has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime is a GPU build."""
    try:
        metadata.version("onnxruntime-gpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def runtimes(*, compiles: bool = False) -> dict[str, str]:
    """This worker's runtimes: runtime → version.

    Parameters:
        compiles: whether it has compiled and run an AOTInductor package (``workers.runner.compiles``).
    """
    there = installed()
    tools = {
        runtime.value: RUNTIME_TOOLS[runtime][0]
        for runtime in Runtime
        if compiles or runtime is not Runtime.AOTINDUCTOR
    }
    return {runtime: there[tool] for runtime, tool in tools.items() if tool in there}
