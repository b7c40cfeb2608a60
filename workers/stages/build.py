"""Build: the engine of one target from a typed ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from farm.engine_header import MalformedHeader, parse_header
from farm.errors import EngineBuildFailed
from farm.specs import BuildParams, Profile, Runtime
from workers import graphs
from workers.backends import ort, trt
from workers.profiles import profiles_as_json, resolve_profiles
from workers.stages import Stage, StageResult

_MATRIX_PRODUCTS = ("MatMul", "Gemm")


def run(stage: Stage) -> StageResult:
    """Write ``engine`` from ``typed``.

    Raises:
        EngineBuildFailed: with the runtime's reason.
        ProfileMismatch: if the profiles don't fit the graph's inputs.
    """
    params = stage.params
    assert isinstance(params, BuildParams)
    model = graphs.read_model(stage.inputs["typed"])
    profiles = resolve_profiles(graphs.input_specs(model), params.profiles)
    if params.target.runtime is Runtime.ONNXRUNTIME:
        return _build_for_cpu(stage, model, profiles)
    return _build_plan(stage, params, model, profiles)


def _build_for_cpu(
    stage: Stage, model: onnx.ModelProto, profiles: Sequence[Profile]
) -> StageResult:
    stage.progress("build", None)
    engine = stage.workdir / "engine.onnx"
    built = ort.build_engine(stage.inputs["typed"], engine)
    facts = {
        "runtime": str(Runtime.ONNXRUNTIME),
        "runtime_version": built.runtime_version,
        "compute_capabilities": [],
        "layers": len(onnx.load(str(engine), load_external_data=False).graph.node),
        "build_s": round(built.build_s, 3),
        "engine_bytes": engine.stat().st_size,
    }
    return StageResult(outputs={"engine": engine}, facts=facts | _interface(model, profiles))


def _build_plan(
    stage: Stage, params: BuildParams, model: onnx.ModelProto, profiles: Sequence[Profile]
) -> StageResult:
    if params.compute_capability == "sm_75":
        refuse_on_turing(model)
    plan = trt.build_plan(
        params.target.runtime,
        stage.inputs["typed"],
        profiles,
        params.compute_capability,
        stage.progress,
    )
    capabilities = [params.compute_capability]
    if params.target.runtime is Runtime.TENSORRT_RTX:
        check_header(plan.data, plan.runtime_version, params.compute_capability)
    engine = stage.workdir / "engine.plan"
    engine.write_bytes(plan.data)
    facts = {
        "runtime": str(params.target.runtime),
        "runtime_version": plan.runtime_version,
        "compute_capabilities": capabilities,
        "layers": plan.layers,
        "build_s": round(plan.build_s, 3),
        "engine_bytes": len(plan.data),
    }
    return StageResult(outputs={"engine": engine}, facts=facts | _interface(model, profiles))


def _interface(model: onnx.ModelProto, profiles: Sequence[Profile]) -> dict[str, Any]:
    return {
        "inputs": graphs.specs_as_json(graphs.input_specs(model)),
        "outputs": graphs.specs_as_json(graphs.output_specs(model)),
        "profiles": profiles_as_json(profiles),
    }


def check_header(data: bytes, version: str, compute_capability: str) -> None:
    """Check that an engine is whole, of this runtime, and for exactly the asked capability.

    Raises:
        EngineBuildFailed: naming what its header says instead.
    """
    try:
        header = parse_header(data)
    except MalformedHeader as err:
        raise EngineBuildFailed(
            f"the engine's header can't be read: {err}", hint="retry the build"
        ) from err
    asked = (version, len(data), (compute_capability,))
    found = (header.version, header.bytes, header.compute_capabilities)
    if found != asked:
        raise EngineBuildFailed(
            f"the engine's header says {found}, and {asked} was asked for",
            hint="retry the build, and report it if it stays so",
        )


def refuse_on_turing(model: onnx.ModelProto) -> None:
    """Refuse types that sm_75 builds wrongly or not at all.

    Engines for it with bf16 have crashed, and dynamic fp32 matrix products have returned zeros.

    Raises:
        EngineBuildFailed: naming the operator.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in [*inferred.value_info, *inferred.output, *inferred.input]
    }
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for node in inferred.node:
        kinds = {types.get(name) for name in [*node.input, *node.output]}
        if onnx.TensorProto.BFLOAT16 in kinds:
            raise EngineBuildFailed(
                f"sm_75 has no bf16, which {node.op_type} {node.name!r} computes in",
                hint="choose fp16 or int8 for this GPU",
            )
        if node.op_type in _MATRIX_PRODUCTS and types.get(node.input[0]) == onnx.TensorProto.FLOAT:
            raise EngineBuildFailed(
                f"TensorRT can't multiply matrices in fp32 on sm_75: {node.op_type} {node.name!r}",
                hint="choose fp16 or int8 for this GPU",
            )
