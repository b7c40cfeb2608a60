"""Builds TensorRT and TensorRT-RTX engines, and refuses graphs that would give wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from farm.errors import EngineBuildFailed
from farm.formats.rtx_header import MalformedHeader, parse_header
from farm.reports.layers import Layer
from farm.specs.roles import Role
from farm.specs.runtime import Runtime
from farm.specs.shapes import Profile
from farm.stages import BuildParams
from workers.backends.trt import build as trt_build
from workers.backends.trt import rtx_plan
from workers.backends.trt.rtx_plan import RtxPlan
from workers.quantize import qat
from workers.stages.base import Stage
from workers.stages.build.made import Made
from workers.stages.build.refusals import (
    refuse_given_outputs,
    refuse_on_turing,
    refuse_own_operators,
)

_INSPECTOR = "the engine, by TensorRT's inspector"


_PLAN = "the plan of TensorRT-RTX {version}, by the text in it"


_NETWORK = "the network, before the builder fused its layers"


_HEADER_HINT = (
    "report it with the job's log: this version of TensorRT-RTX writes its engines otherwise than the "
    "farm knows, and would do so again"
)


def build_plan(
    stage: Stage,
    params: BuildParams,
    file: Path,
    model: onnx.ModelProto,
    profiles: Sequence[Profile],
) -> Made:
    refuse_given_outputs(model)
    refuse_own_operators(params, model)
    if params.compute_capability == "sm_75":
        refuse_on_turing(model, params.precision)
    qat.refuse_asymmetric(model)
    known = stage.inputs.get(Role.TIMING_CACHE)
    plan = trt_build.build_plan(
        params.target.runtime,
        file,
        profiles,
        params.compute_capability,
        params.options,
        stage.progress,
        model=model,
        timing_cache=known.read_bytes() if known else b"",
        plugins=stage.plugins(params.options),
    )
    is_rtx = params.target.runtime is Runtime.TENSORRT_RTX
    read = _read_plan(plan, params.compute_capability) if is_rtx else None
    engine = stage.workdir / "engine.plan"
    engine.write_bytes(plan.data)
    made, source = _layers_of(plan, read)
    return Made(
        engine=engine,
        runtime_version=plan.runtime_version,
        compute_capabilities=(params.compute_capability,),
        build_s=plan.build_s,
        layers=made,
        layers_source=source,
        timing_cache=plan.timing_cache,
        inspected=plan.inspected,
        read=read,
        interface=plan.inspected.interface if plan.inspected else plan.interface,
    )


def _read_plan(plan: trt_build.Plan, compute_capability: str) -> RtxPlan | None:
    check_header(plan.data, plan.runtime_version, compute_capability)
    read = rtx_plan.read_plan(plan.data)
    if read is None:
        print("the plan's text can't be read: its types are those of the typed graph")
    return read


def _layers_of(plan: trt_build.Plan, read: RtxPlan | None) -> tuple[Sequence[Layer], str]:
    """The engine's layers, otherwise the network's; and which of the two."""
    if plan.inspected:
        return plan.inspected.layers, _INSPECTOR
    if read:
        return read.layers, _PLAN.format(version=read.version or plan.runtime_version)
    return plan.layers, _NETWORK


def check_header(data: bytes, version: str, compute_capability: str) -> None:
    """Check that an engine is complete, of this runtime, and for exactly the requested capability.

    Raises:
        EngineBuildFailed: names what its header says instead.
    """
    try:
        header = parse_header(data)
    except MalformedHeader as err:
        raise EngineBuildFailed(
            f"the engine's header can't be read: {err}", hint=_HEADER_HINT
        ) from err
    asked = (version, len(data), (compute_capability,))
    found = (header.version, header.bytes, header.compute_capabilities)
    if found != asked:
        raise EngineBuildFailed(
            f"the engine's header says {found}, and {asked} was asked for",
            hint=_HEADER_HINT,
        )
