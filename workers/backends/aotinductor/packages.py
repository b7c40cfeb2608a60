"""Packages that compute what the program they were compiled from computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from farm.errors import EngineBuildFailed
from workers.backends.aotinductor import build, proof
from workers.inputs.batch import Arrays
from workers.programs.eager import array_of, given_to
from workers.programs.lowered import Lowered

#: Of the deviation of the program's own values. Another order of rounding gives hundredths at most, a kernel
#: that reads its input in the wrong layout gives tenths and more.
_CLOSE = 0.1


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that ran in a fresh process."""

    path: Path
    build_s: float
    kernels: Mapping[str, float]  #: on a GPU, and the microseconds of each
    off: float  #: from the program's outputs, over their deviation


def packaged(
    module: Lowered,
    examples: Sequence[torch.Tensor],
    arrays: Arrays,
    of: build.Signature,
    folder: Path,
    progress: Callable[[str, float | None], None],
) -> Package:
    """Compile the module in its layout; in the other one if that fails, or if its package computes otherwise.

    Where an axis has one element layouts look alike, and a compiler may take one for another: it refuses the
    program, or writes kernels that read values in the wrong order.

    Parameters:
        examples: what it is traced with, on its device.
        arrays: what the package is tried with.

    Raises:
        EngineBuildFailed: no layout compiles, or a package doesn't run in a fresh process.
    """
    device = examples[0].device.type
    layouts = [module.is_channels_last]
    if chooses_layouts(module, device):
        layouts.append(not module.is_channels_last)
    made: list[Package] = []
    for number, last in enumerate(layouts):
        module = module if number == 0 else module.channels_last(last)
        progress("build", None)
        package = folder / f"engine{number}.pt2"
        try:
            build_s = build.compile_package(build.traced(module, examples, of), of, package)
        except EngineBuildFailed as err:
            if number + 1 == len(layouts) and not made:
                raise
            print(f"{_named(last)} can't be compiled: {err.detail}", flush=True)
            continue
        progress("run in a fresh process", None)
        ran = proof.proved(package, device, arrays, folder)
        off = deviation(ran.outputs, _computed(module, of, arrays, device))
        made.append(Package(path=package, build_s=build_s, kernels=ran.kernels, off=off))
        if off <= _CLOSE:
            return made[-1]
        print(
            f"compiled with {_named(last)}, it is off by {off:.2g} deviations from the program that was "
            "compiled",
            flush=True,
        )
    return min(made, key=lambda one: one.off)


def chooses_layouts(module: Lowered, device: str) -> bool:
    """Whether the farm lays images out; elsewhere the compiler does."""
    return device == "cuda" and module.has_images


def _named(last: bool) -> str:
    return "channels last" if last else "channels first"


def _computed(module: Lowered, of: build.Signature, arrays: Arrays, device: str) -> Arrays:
    """What the module itself computes."""
    given = [one.to(device) for one in given_to(of.inputs, arrays)]
    with torch.inference_mode():
        outputs = module(*given)
    return {spec.name: array_of(one) for spec, one in zip(of.outputs, outputs, strict=True)}


def deviation(found: Mapping[str, NDArray[np.generic]], wanted: Arrays) -> float:
    """The largest of the outputs' root mean square errors, over the standard deviation of what is wanted.

    Of whole numbers and truths it is the share that differ. Where one has a number and the other none, it is
    infinite.
    """
    return max((_off(found[name], array) for name, array in wanted.items()), default=0.0)


def _off(found: NDArray[np.generic], wanted: NDArray[np.generic]) -> float:
    if found.shape != wanted.shape:  # of a size that depends on the data
        return float("inf")
    if not wanted.size:
        return 0.0
    if wanted.dtype.kind not in "fc":
        return float(np.mean(found != wanted))
    left, right = found.astype(np.complex128), wanted.astype(np.complex128)
    if not np.array_equal(np.isfinite(left), np.isfinite(right)):
        return float("inf")
    left, right = left[np.isfinite(left)], right[np.isfinite(right)]
    error = float(np.sqrt(np.mean(np.abs(left - right) ** 2))) if left.size else 0.0
    if error == 0.0:
        return 0.0
    scale = float(np.std(right)) or float(np.abs(right).max())
    return error / scale if scale else float("inf")
