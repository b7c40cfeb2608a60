"""Adapts the typed graph to a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from farm.specs.gpus import CPU
from farm.specs.precision import Precision
from farm.specs.runtime import TENSORRTS
from farm.specs.shapes import Profile
from farm.stages import BuildParams
from workers.graphs import axes, files, fixing, floats
from workers.graphs.bytes_first import cast_first
from workers.stages.base import Stage


def in_types_of(
    params: BuildParams, folder: Path, file: Path, model: onnx.ModelProto
) -> tuple[Path, onnx.ModelProto, list[str]]:
    """The graph without the floating-point types that the target lacks, and which those are.

    Inputs and outputs of such a type also become fp32. fp16 ones stay: CPUs only lack its kernels.
    """
    missing = (
        [onnx.TensorProto.DOUBLE]
        if params.target.runtime in TENSORRTS
        else [onnx.TensorProto.BFLOAT16]
        if params.target.gpu == CPU and params.precision is not Precision.BF16
        else []
    )
    if not floats.has_type(model, *missing):
        return file, model, []
    names = [floats.NAMES[kind] for kind in missing]
    print(
        f"{params.target} has no {names[0]}: the engine computes in float32 there, and takes and gives it"
    )
    files.load_weights(model, file)
    made = floats.narrowed(model, kinds=missing)
    file = folder / "narrowed.onnx"
    files.write_model(made, file)
    return file, made, names


def bytes_cast_first(stage: Stage, file: Path, model: onnx.ModelProto) -> Path:
    """The graph for TensorRT, which can only cast uint8 inputs."""
    names = cast_first(model)
    if not names:
        return file
    print(f"cast before they are moved: {', '.join(names)}", flush=True)
    return _written(stage, file, model, "cast-first.onnx")


def settled(
    stage: Stage, file: Path, model: onnx.ModelProto, profiles: Sequence[Profile]
) -> tuple[Path, onnx.ModelProto]:
    """The graph with the sizes that the profiles fix, and without branches that these rule out: TensorRT
    refuses some operators that it must plan for any size."""
    names = axes.settle(model, profiles)
    if not names:
        return file, model
    print(f"with the one size that the profiles give axes of {', '.join(names)}", flush=True)
    has_branches = any(node.op_type == "If" for node in model.graph.node)
    if has_branches and not files.is_large(model):
        model = fixing.folded(model)
    return _written(stage, file, model, "settled.onnx"), model


def _written(stage: Stage, file: Path, model: onnx.ModelProto, name: str) -> Path:
    # Next to the weights if they are in external files.
    folder = stage.workdir if file in stage.inputs.values() else file.parent
    onnx.save(model, str(folder / name))
    return folder / name
