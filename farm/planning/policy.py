"""Which engines can be built, and how: one row per precision, looked up once per target.

A new precision is one row of ``_ROWS`` and its traits in ``farm.specs.precision``. Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from farm.specs import gpus
from farm.specs.options import BuilderOptions
from farm.specs.precision import TRAITS, Precision
from farm.specs.queues import CPU_QUEUE, Queue
from farm.specs.roles import Role
from farm.specs.runtime import OF_PROGRAMS, TENSORRTS, Runtime, Target

#: TensorRT-RTX builds ahead of time for these on any CPU (tensorrt-rtx 1.7).
RTX_CAPABILITIES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
_FIRST_BF16 = 80  #: Ampere
_FIRST_FP8 = 89  #: Ada

#: For sm_75, TensorRT-RTX computes these in half instead of int8 (tensorrt-rtx 1.7).
_IN_HALF_ON_TURING = {"Conv", "ConvTranspose"}
_PRODUCTS = {"Attention", "Einsum", "Gemm", "MatMul", *_IN_HALF_ON_TURING}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Where a precision can be built; a text says why not and what to use instead."""

    not_on_cpu: str | None = None
    not_on_gpu: str | None = None
    not_in_cuda_provider: str | None = None  #: ONNX Runtime's
    not_in_torchscript: str | None = (
        "TorchScript is built in fp32; for {precision} use onnxruntime:cpu"
    )
    first_capability: int = 0  #: the first that computes in it
    instead: str = ""  #: what to use below that
    not_in_rtx: Mapping[str, str] = field(default_factory=dict)  #: by compute capability
    note_in_rtx: Mapping[str, str] = field(default_factory=dict)  #: caveats there
    #: the graph's role for GPUs without and with bf16
    on_gpu: tuple[Role, Role] = (Role.TYPED, Role.TYPED)
    ranges_on_cpu: bool = False  #: whether CPU kernels need more ranges than the graph has


_NO_INTEGERS = "ONNX Runtime's CUDA provider has no {precision} kernels; use tensorrt:{gpu}"
_ROWS: dict[Precision, _Row] = {
    Precision.FP32: _Row(
        not_in_torchscript=None,
        not_in_rtx={"sm_75": "TensorRT-RTX has no fp32 matrix products on sm_75; use fp16 or int8"},
        on_gpu=(Role.ONNX, Role.ONNX),
    ),
    Precision.FP16: _Row(),
    Precision.BF16: _Row(
        not_on_cpu="ONNX Runtime has no bf16 kernels for CPUs; use fp32 or int8",
        first_capability=_FIRST_BF16,
        instead="fp16",
    ),
    Precision.INT8: _Row(
        not_in_cuda_provider=_NO_INTEGERS,
        note_in_rtx={
            "sm_75": "TensorRT-RTX computes int8 convolutions in fp16 on sm_75, and only matrix "
            "products in int8"
        },
        on_gpu=(Role.TYPED_FP16, Role.TYPED_HALF),
        ranges_on_cpu=True,
    ),
    Precision.FP8: _Row(
        not_on_cpu="CPUs have no fp8; use int8",
        not_in_cuda_provider=_NO_INTEGERS,
        first_capability=_FIRST_FP8,
        instead="int8",
        on_gpu=(Role.TYPED_FP16, Role.TYPED_HALF),
    ),
    Precision.INT8_DYNAMIC: _Row(
        not_on_gpu="GPU runtimes need calibrated ranges; use int8, with calibration data",
    ),
}


class Refusal(str):
    """Why no worker could ever build something, and what to use instead."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """How an engine is made."""

    typed: Role | None  #: the typing stage's output it is built from; None: the source
    ranges: bool  #: whether its build measures ranges on calibration data
    build_queue: str  #: the queue for workers that can build it
    note: str | None  #: a caveat, if the engine isn't quite what its name says


def route(
    target: Target, precision: Precision, operators: Collection[str] | None = None
) -> Route | Refusal:
    """How a target's engine in a precision is made, or why it can't be.

    Parameters:
        operators: the source graph's, if known.
    """
    refused = refusal(target, precision)
    if refused:
        return refused
    row, said = _ROWS[precision], note(target, precision)
    products = _PRODUCTS.intersection(operators or ())
    if said and products and products <= _IN_HALF_ON_TURING:
        return Refusal(f"{said}, and the model has none; use fp16, or tensorrt:{target.gpu}")
    on_cpu = target.gpu == gpus.CPU
    return Route(
        typed=_typed(target, precision),
        ranges=row.ranges_on_cpu and target.runtime is Runtime.ONNXRUNTIME and on_cpu,
        build_queue=build_queue(target),
        note=said,
    )


def _typed(target: Target, precision: Precision) -> Role | None:
    if target.runtime in OF_PROGRAMS:
        return None
    without_bf16, with_bf16 = _ROWS[precision].on_gpu
    if target.gpu == gpus.CPU:
        return Role.ONNX if TRAITS[precision].typed_by == "export" else Role.TYPED
    capability = gpus.number(gpus.compute_capability(target.gpu))
    return with_bf16 if capability >= _FIRST_BF16 else without_bf16


def refusal(target: Target, precision: Precision | None = None) -> Refusal | None:
    """Why no worker could ever build this, or None if one could.

    Parameters:
        precision: any by default.
    """
    return _unknown_to_runtime(target) or (_refused(target, precision) if precision else None)


def _unknown_to_runtime(target: Target) -> Refusal | None:
    capability = gpus.compute_capability(target.gpu)
    if capability == gpus.CPU:
        if target.runtime in TENSORRTS:
            return Refusal(f"{target.runtime} runs on GPUs only; on a CPU use onnxruntime:cpu")
    elif target.runtime is Runtime.TORCHSCRIPT:
        return Refusal(f"TorchScript is built for cpu only; use tensorrt:{target.gpu}")
    elif target.runtime is Runtime.TENSORRT_RTX and capability not in RTX_CAPABILITIES:
        return Refusal(
            f"TensorRT-RTX can't build for {capability} (only {', '.join(RTX_CAPABILITIES)}); "
            f"use tensorrt:{target.gpu}"
        )
    return None


def _refused(target: Target, precision: Precision) -> Refusal | None:
    row, capability = _ROWS[precision], gpus.compute_capability(target.gpu)
    reason: str | None = None
    if target.runtime is Runtime.TORCHSCRIPT:
        reason = row.not_in_torchscript
    elif capability == gpus.CPU:
        reason = row.not_on_cpu
        if target.runtime is Runtime.AOTINDUCTOR and precision is not Precision.FP32:
            instead = reason or "for {precision} use onnxruntime:cpu"
            reason = f"AOTInductor is built in fp32 for cpu; {instead}"
    elif row.not_on_gpu:
        reason = row.not_on_gpu
    elif target.runtime is Runtime.ONNXRUNTIME and row.not_in_cuda_provider:
        reason = row.not_in_cuda_provider
    elif gpus.number(capability) < row.first_capability:
        reason = "{capability} has no {precision}, which needs sm_{first} or later; use {instead}"
    elif target.runtime is Runtime.TENSORRT_RTX:
        reason = row.not_in_rtx.get(capability)
    if not reason:
        return None
    return Refusal(
        reason.format(
            precision=precision,
            gpu=target.gpu,
            capability=capability,
            first=row.first_capability,
            instead=row.instead,
        )
    )


def note(target: Target, precision: Precision) -> str | None:
    """A caveat about an engine before it is built, if it isn't quite what its name says."""
    if target.runtime is not Runtime.TENSORRT_RTX:
        return None
    return _ROWS[precision].note_in_rtx.get(gpus.compute_capability(target.gpu))


def option_refusal(target: Target, options: BuilderOptions) -> Refusal | None:
    """Why no worker could ever build this target with these options, or None if one could."""
    changed = options.changed().keys()
    if _takes_tf32_alone(target):
        others = sorted(changed - {"tf32"})
        name = "AOTInductor" if target.runtime is Runtime.AOTINDUCTOR else "ONNX Runtime"
        return (
            Refusal(f"{', '.join(others)}: {name} has no builder option but tf32")
            if others
            else None
        )
    if target.runtime not in TENSORRTS and changed:
        return Refusal(
            f"{', '.join(changed)}: only TensorRT has builder options, not {target.runtime}"
        )
    if target.runtime is Runtime.TENSORRT_RTX:
        if options.plugins:
            return Refusal(
                "TensorRT-RTX doesn't support plugins: rewrite the operator with standard ones"
            )
        if options.version_compatible:
            return Refusal(
                "TensorRT-RTX runs an engine only with the version that built it: it has no lean runtime"
            )
        if options.hardware_compatibility_level != "none":
            return Refusal(
                "TensorRT-RTX builds for specific compute capabilities: list each GPU as a target "
                "instead of a hardware_compatibility_level"
            )
    return None


def _takes_tf32_alone(target: Target) -> bool:
    is_cuda = target.runtime is Runtime.ONNXRUNTIME and target.gpu != gpus.CPU
    return is_cuda or target.runtime is Runtime.AOTINDUCTOR


def build_queue(target: Target) -> str:
    """The queue for workers that can build for this target."""
    needs_no_gpu = target.runtime is Runtime.TENSORRT_RTX or target.gpu == gpus.CPU
    return str(Queue(target.runtime, gpus.CPU) if needs_no_gpu else Queue.of(target))


def run_queue(target: Target, online_queues: Mapping[str, int]) -> str | None:
    """The queue for workers that can run this target's engines, to measure them.

    An engine can run where it is built, except TensorRT-RTX's, which are built without a GPU: None for
    these while no worker with such a GPU is online.
    """
    if target.gpu == gpus.CPU:
        return CPU_QUEUE
    queue = str(Queue.of(target))
    if target.runtime is Runtime.TENSORRT_RTX and not online_queues.get(queue):
        return None
    return queue
