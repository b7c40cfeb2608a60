"""Which runtime can build which precision for which GPU, and which one a target takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from farm.errors import InvalidRequest, TargetUnsupported
from farm.specs import gpus
from farm.specs.options import BuilderOptions
from farm.specs.precision import CALIBRATED, Precision
from farm.specs.queues import CPU_QUEUE, Queue
from farm.specs.runtime import TENSORRTS, Runtime, Target

#: TensorRT-RTX builds ahead of time for these on any CPU (tensorrt-rtx 1.7).
RTX_CAPABILITIES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
_FIRST_BF16 = 80  #: Ampere
_FIRST_FP8 = 89  #: Ada


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A target that was chosen for what a user asked, and why."""

    asked: str
    target: Target
    why: str

    @property
    def compute_capability(self) -> str:
        return gpus.compute_capability(self.target.gpu)


def refusal(target: Target, precision: Precision | None = None) -> str | None:
    """Why no worker could ever build this, or None when one could."""
    capability = gpus.compute_capability(target.gpu)
    if capability == gpus.CPU:
        if target.runtime in TENSORRTS:
            return f"{target.runtime} runs on GPUs only; on a CPU use onnxruntime:cpu"
        if target.runtime is Runtime.TORCHSCRIPT:
            return _torchscript_refusal(precision)
        if precision is Precision.BF16:
            return "ONNX Runtime has no bf16 kernels for CPUs; use fp32 or int8"
        if precision is Precision.FP8:
            return "CPUs have no fp8; use int8"
        return None
    if target.runtime is Runtime.TORCHSCRIPT:
        return f"TorchScript is built for cpu only; use tensorrt:{target.gpu}"
    if precision is Precision.INT8_DYNAMIC:
        return "on GPUs ranges come from calibration only; use int8, with calibration data"
    if target.runtime is Runtime.ONNXRUNTIME:
        if precision in CALIBRATED:
            return (
                f"ONNX Runtime's CUDA provider multiplies in floats and has no {precision} kernels; "
                f"use tensorrt:{target.gpu}"
            )
        return None
    if target.runtime is Runtime.TENSORRT_RTX and capability not in RTX_CAPABILITIES:
        return (
            f"TensorRT-RTX can't build for {capability} (only {', '.join(RTX_CAPABILITIES)}); "
            f"use tensorrt:{target.gpu}"
        )
    if precision is Precision.FP8 and gpus.number(capability) < _FIRST_FP8:
        return f"{capability} has no fp8, which comes with sm_{_FIRST_FP8}; use int8"
    if capability == "sm_75":
        if precision is Precision.BF16:
            return "sm_75 has no bf16; use fp16"
        if precision is Precision.FP32 and target.runtime is Runtime.TENSORRT_RTX:
            return "TensorRT-RTX has no fp32 matrix products on sm_75; use fp16 or int8"
    return None


#: Of these TensorRT-RTX builds no int8 for sm_75 but computes them in half (tensorrt-rtx 1.7).
_IN_HALF_ON_TURING = {"Conv", "ConvTranspose"}
_PRODUCTS = {"Attention", "Einsum", "Gemm", "MatMul", *_IN_HALF_ON_TURING}
_TURING_HAS_NO_INT8_CONVOLUTIONS = (
    "TensorRT-RTX computes int8 convolutions in half on sm_75, and only matrix products in int8"
)


def note(target: Target, precision: Precision | None) -> str | None:
    """What to know of an engine before it is built, where that isn't what its name says."""
    turing = gpus.compute_capability(target.gpu) == "sm_75"
    if precision is Precision.INT8 and turing and target.runtime is Runtime.TENSORRT_RTX:
        return _TURING_HAS_NO_INT8_CONVOLUTIONS
    return None


def graph_refusal(
    target: Target, precision: Precision, operators: Collection[str] | None
) -> str | None:
    """Why a graph of these operators can't be had so, as far as is known without building it."""
    said = note(target, precision)
    products = _PRODUCTS.intersection(operators or ())
    if said and products and products <= _IN_HALF_ON_TURING:
        return f"{said}, of which the model has none; use fp16, or tensorrt:{target.gpu}"
    return None


def _torchscript_refusal(precision: Precision | None) -> str | None:
    if precision in (None, Precision.FP32):
        return None
    return f"TorchScript is built in fp32; for {precision} use onnxruntime:cpu"


def has_bf16(target: Target) -> bool:
    """Whether a GPU computes in bf16."""
    return gpus.number(gpus.compute_capability(target.gpu)) >= _FIRST_BF16


def option_refusal(target: Target, options: BuilderOptions) -> str | None:
    """Why no worker could ever build this target with these options, or None when one could."""
    changed = options.changed()
    if target.runtime not in TENSORRTS and changed:
        return (
            f"{', '.join(changed)}: an option of TensorRT's builder, and {target.runtime} has none"
        )
    if target.runtime is Runtime.TENSORRT_RTX:
        if options.plugins:
            return "TensorRT-RTX takes no plugins: rewrite the operator with standard ones"
        if options.version_compatible:
            return (
                "TensorRT-RTX runs an engine with the version that built it: it has no lean runtime"
            )
        if options.hardware_compatibility_level != "none":
            return (
                "TensorRT-RTX builds for named compute capabilities: name each GPU as a target "
                "instead of a hardware_compatibility_level"
            )
    return None


def build_queue(target: Target) -> str:
    """The queue of the workers that can build for this target."""
    needs_no_gpu = target.runtime is Runtime.TENSORRT_RTX or target.gpu == gpus.CPU
    return str(Queue(target.runtime, gpus.CPU) if needs_no_gpu else Queue.of(target))


def run_queue(target: Target, online_queues: Mapping[str, int]) -> str | None:
    """The queue of the workers that can run this target's engines, to measure them.

    Where an engine is built it can be run. Those of TensorRT-RTX are built without a GPU: None for
    them while no worker with such a GPU is online.
    """
    if target.gpu == gpus.CPU:
        return CPU_QUEUE
    queue = str(Queue.of(target))
    if target.runtime is Runtime.TENSORRT_RTX and not online_queues.get(queue):
        return None
    return queue


def parse(asked: str) -> tuple[Runtime | None, str]:
    """Split ``tensorrt-rtx:sm_120`` or ``rtx-4090`` into a runtime, if named, and a canonical tag.

    Raises:
        UnknownGpu, InvalidRequest: for a tag or a runtime that doesn't exist.
    """
    name, colon, tag = asked.strip().rpartition(":")
    if not colon:
        return None, gpus.canonical(asked)
    try:
        runtime = Runtime(name.strip().lower())
    except ValueError:
        known = ", ".join(Runtime)
        raise InvalidRequest(
            f"unknown runtime {name!r}", hint=f"the runtimes are {known}"
        ) from None
    return runtime, gpus.canonical(tag)


def choose(asked: str, *, runtimes: Iterable[Runtime], online_queues: Mapping[str, int]) -> Choice:
    """Choose the target for what a user asked.

    A target without a runtime takes the first of ``runtimes`` that a worker who is online can build
    for, else the first that could be built at all.

    Parameters:
        online_queues: queue → number of online workers that consume it.

    Raises:
        UnknownGpu, InvalidRequest, TargetUnsupported
    """
    runtime, tag = parse(asked)
    if runtime is not None:
        reason = refusal(Target(runtime=runtime, gpu=tag))
        if reason:
            raise TargetUnsupported(f"{asked}: {reason}")
        return Choice(asked=asked, target=_normal(runtime, tag), why="named in the request")
    if tag == gpus.CPU:
        cpu = Target(runtime=Runtime.ONNXRUNTIME, gpu=tag)
        return Choice(asked=asked, target=cpu, why="cpu means onnxruntime:cpu")
    candidates = [_normal(one, tag) for one in runtimes]
    possible = [target for target in candidates if refusal(target) is None]
    for target in possible:
        if online_queues.get(build_queue(target)):
            return Choice(
                asked=asked,
                target=target,
                why=f"first of {', '.join(runtimes)} that a worker online can build for {tag}",
            )
    if possible:
        return Choice(
            asked=asked,
            target=possible[0],
            why=f"no worker online can build for {tag}; waits for one with {possible[0]}",
        )
    reasons = "; ".join(filter(None, map(refusal, candidates)))
    raise TargetUnsupported(f"{asked}: {reasons}")


def _normal(runtime: Runtime, tag: str) -> Target:
    """Engines of TensorRT-RTX and ONNX Runtime are built a compute capability, those of TensorRT a product.

    Of classic TensorRT the same compute capability isn't the same engine: a plan carries
    the tactics of the very product that it was tuned on.
    """
    if runtime is Runtime.TENSORRT_RTX:
        tag = gpus.compute_capability(tag)
    return Target(runtime=runtime, gpu=tag)
