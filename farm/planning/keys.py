"""Keys: a job is identified by what it does.

``key = sha256(canonical JSON of the recipe)``: ``farm.planning.recipe``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from farm.specs.runtime import Runtime
from farm.specs.source import SourceFormat
from farm.stages import STAGES, JobKind

#: Runtime → packages whose versions can change its engines; the first one is the runtime's own.
RUNTIME_TOOLS: dict[Runtime, tuple[str, ...]] = {
    Runtime.TENSORRT: ("tensorrt",),
    Runtime.TENSORRT_RTX: ("tensorrt-rtx",),
    Runtime.ONNXRUNTIME: ("onnxruntime",),
    Runtime.AOTINDUCTOR: ("torch", "cuda", "triton", "c++", "instruction-set"),
    Runtime.TORCHSCRIPT: ("torch",),
}
#: Source format → further packages, for the stages that run the source.
FORMAT_TOOLS: dict[SourceFormat, tuple[str, ...]] = {
    SourceFormat.SAVEDMODEL: ("tensorflow", "tf2onnx"),
}
#: Packages that decode and resize images.
IMAGE_TOOLS = ("pillow",)


def tools(
    kind: JobKind,
    runtime: Runtime | None,
    toolchain: Mapping[str, str],
    format: SourceFormat | None = None,
    *,
    images: bool = False,
) -> dict[str, str]:
    """The part of a worker's toolchain that a job's key covers.

    Parameters:
        images: whether its data are images.

    A tool that no worker has announced yet is ``any``: the worker that claims the job fills in the version.
    """
    spec = STAGES[kind]
    names = {*spec.tools, *(RUNTIME_TOOLS[runtime] if runtime else ())}
    if images:
        names |= set(IMAGE_TOOLS)
    if format is not None and spec.runs_source:
        names |= set(FORMAT_TOOLS.get(format, ()))
    return {name: toolchain.get(name, "any") for name in sorted(names)}


def key(recipe: Mapping[str, Any]) -> str:
    """A recipe's key; it doesn't depend on the order of fields."""
    canonical = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def variant(
    fixed_inputs: Mapping[str, Any] | None,
    architecture: Mapping[str, Any] | None,
    format: SourceFormat | None = None,
) -> str:
    """Distinguishes sources with the same bytes; empty for one that its bytes fully describe."""
    told = {"fixed_inputs": fixed_inputs, "architecture": architecture, "format": format}
    given = {name: value for name, value in told.items() if value}
    return key(given) if given else ""
