"""Releases of Triton Inference Server, and which engines each can load."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from farm.errors import InvalidRequest
from farm.specs import machines
from farm.specs.gpus import CPU
from farm.specs.machines import Built, Machine
from farm.specs.runtime import Runtime
from farm.specs.values import Value
from farm.specs.words import Folded

#: Why Triton can't serve a runtime's engines.
UNSUPPORTED: Mapping[Runtime, str] = {
    Runtime.TENSORRT_RTX: "Triton has no backend for TensorRT-RTX",
    Runtime.AOTINDUCTOR: (
        "the platform torch_aoti of Triton's PyTorch backend is recent, and nobody has seen it load the "
        "farm's AOTInductor packages"
    ),
}


class Backend(Folded):
    """What in Triton executes an engine of ONNX Runtime."""

    ONNXRUNTIME = "onnxruntime"  #: Triton's own, of its release's version
    PYTHON = "python"  #: a model.py that imports the onnxruntime of Triton's Python


class Release(Value):
    """What a release's image holds; None where that is unknown."""

    name: str
    cuda: str
    tensorrt: str
    pytorch: str
    onnxruntime: str | None = None

    @property
    def machine(self) -> Machine:
        """The release's image, as a machine that has these."""
        has = {"tensorrt": self.tensorrt, "torch": self.pytorch, "onnxruntime": self.onnxruntime}
        known = {package: version for package, version in has.items() if version}
        return Machine(os=machines.LINUX, versions=known)


@cache
def releases() -> Mapping[str, Release]:
    """The releases that the farm knows, by name, oldest first."""
    text = resources.files("farm.specs").joinpath("triton_releases.toml").read_text()
    return {name: Release(name=name, **told) for name, told in tomllib.loads(text).items()}


def release(name: str) -> Release:
    """The release with this name.

    Raises:
        InvalidRequest: the farm doesn't know it; lists those it knows.
    """
    try:
        return releases()[name]
    except KeyError:
        raise InvalidRequest(
            f"the farm doesn't know what Triton {name!r} holds",
            hint=f"known are {', '.join(releases())}; for another, compare an engine's runtime_version with "
            "its release notes, and choose with --runtime and --precision",
        ) from None


def misfit(release: Release, engine: Built, *, gpu: str) -> str | None:
    """Why a release can't load an engine, in words; None if it can.

    Parameters:
        gpu: what the engine was built for.
    """
    if engine.runtime in UNSUPPORTED:
        return UNSUPPORTED[engine.runtime]
    if engine.runtime is Runtime.ONNXRUNTIME and gpu == CPU:
        return None  # the Python backend imports the onnxruntime that is installed beside it
    if engine.runtime is Runtime.ONNXRUNTIME and release.onnxruntime is None:
        return f"which ONNX Runtime Triton {release.name} has isn't known to the farm"
    told = machines.misfit(engine, release.machine)
    return told and f"Triton {release.name}: {told}"
