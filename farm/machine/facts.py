"""What an engine that is to run here has to fit: this machine's system, driver and runtimes."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata

from farm.machine import gpus
from farm.specs.machines import SYSTEMS, Machine

#: What a machine says it has → the distributions that it may be installed as.
DISTRIBUTIONS = {
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "torch": ("torch",),
}


def here() -> Machine:
    """This machine. A runtime counts if this Python could import it; none is imported."""
    system = platform.system().lower()
    return Machine(
        os=system if system in SYSTEMS else None,
        driver=gpus.driver(),
        versions=dict(_versions()),
    )


def _versions() -> Iterator[tuple[str, str]]:
    return installed(DISTRIBUTIONS)


def installed(named: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Each name with the version of the first of its distributions that is installed."""
    for name, distributions in named.items():
        for one in distributions:
            with suppress(metadata.PackageNotFoundError):
                yield name, metadata.version(one)
                break
