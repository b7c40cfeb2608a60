"""What executes engines, and what an engine is built for."""

from __future__ import annotations

from typing import Self

from farm.specs.values import Value
from farm.specs.words import Folded


class Runtime(Folded):
    """What executes the engine."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    ONNXRUNTIME = "onnxruntime"
    AOTINDUCTOR = "aotinductor"  #: a compiled ``torch.export`` program, without ONNX
    TORCHSCRIPT = "torchscript"  #: likewise without ONNX


TENSORRTS = (Runtime.TENSORRT, Runtime.TENSORRT_RTX)
#: Built from the PyTorch program itself.
OF_PROGRAMS = (Runtime.AOTINDUCTOR, Runtime.TORCHSCRIPT)


class Target(Value):
    """A runtime and a GPU tag: what an engine is built for."""

    runtime: Runtime
    gpu: str  #: ``sm_89``, a product name such as ``h200``, or ``cpu``

    def __str__(self) -> str:
        return f"{self.runtime}:{self.gpu}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the output of ``str``; ``targets.parse`` parses users' input."""
        runtime, _, gpu = text.partition(":")
        return cls(runtime=Runtime(runtime), gpu=gpu)
