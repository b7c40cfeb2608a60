"""Hints for failures that need more than a line, depending on the request.

Each takes the match of its entry in ``workers.failures.known``.
"""

from __future__ import annotations

import re
from importlib.metadata import version

from farm.specs import gpus
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.specs.source import SourceFormat
from farm.stages import JobKind
from workers.failures.asked import Asked, either

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8


def another_way(asked: Asked) -> str:
    """Another precision for the target, or the same precision elsewhere; empty if there is neither."""
    return either(
        asked.better(FP32, FP16) or asked.better(BF16, INT8),
        asked.elsewhere(Runtime.TENSORRT, Runtime.ONNXRUNTIME),
    )


def memory(asked: Asked, _: re.Match[str] | None = None) -> str:
    """What to do when memory ran out."""
    smaller = {
        JobKind.CALIBRATE: "calibrate with a smaller batch_size or fewer samples",
        JobKind.MEASURE: "allow smaller shapes by --profile",
    }.get(asked.stage, "allow smaller max shapes by --profile")
    on_gpu = asked.target is not None and asked.target.gpu != gpus.CPU
    more = "more memory" if not on_gpu else "more memory, or a GPU with more"
    return f"{smaller}; or give jobs {more} (FARM_JOB_MEMORY_BYTES, FARM_CPU_SLOTS on the worker)"


def lacks_operator(asked: Asked, match: re.Match[str]) -> str:
    classic = asked.target is not None and asked.target.runtime is Runtime.TENSORRT
    return either(
        f"rewrite {match['op']} with operators TensorRT supports",
        "use a plugin library that implements it (option plugins)" if classic else "",
        asked.elsewhere(Runtime.ONNXRUNTIME),
    )


def value_shaped(asked: Asked, _match: re.Match[str]) -> str:
    return either(
        "keep its size fixed: a mask (torch.where) or TopK instead of NonZero",
        asked.elsewhere(Runtime.TENSORRT, Runtime.ONNXRUNTIME),
    )


def fp32_on_turing(asked: Asked, _match: re.Match[str]) -> str:
    other = asked.elsewhere(Runtime.ONNXRUNTIME)
    if asked.precision is FP32:
        return either(asked.better(FP16, INT8), other)
    return either(
        "choose a GPU of sm_80 or later: on sm_75 TensorRT-RTX has no matrix products in fp32, which "
        "some operators need for their range or in a branch or loop",
        other,
    )


_TYPE_WORDS = {"b16": "bf16", "fp8_e4m3": "fp8"}


def lacks_type(asked: Asked, match: re.Match[str]) -> str:
    word = _TYPE_WORDS.get(match["type"], match["type"])
    needs = {"bf16": "sm_80", "fp8": "sm_89"}.get(word)
    there = f"choose a GPU that has {word}{f' ({needs} and later)' if needs else ''}"
    return either(asked.better(FP16, INT8), there)


def mixed_types(asked: Asked, match: re.Match[str]) -> str:
    if _as_submitted(asked):
        return f"cast the inputs of {match['op'] or 'that operator'} to one type in the model"
    return _mistyped(asked)


def _as_submitted(asked: Asked) -> bool:
    """Whether the failed graph is the user's own, not one that the farm derived from it."""
    return asked.stage is JobKind.EXPORT or (
        asked.stage is JobKind.BUILD and asked.precision is FP32
    )


def _mistyped(asked: Asked) -> str:
    return either(
        another_way(asked),
        "report it with the job's log: the model was valid, but the farm's version of it isn't",
    )


def size_input(_asked: Asked, _match: re.Match[str]) -> str:
    return either(
        "fix the shape input to one value: --fix NAME=VALUE",
        "export the model with that value as a constant",
    )


def index(asked: Asked, _match: re.Match[str]) -> str:
    if asked.data or asked.stage is JobKind.CALIBRATE:
        return (
            "the data has an out-of-range index: check that it was made for this "
            "model (its tokenizer, its number of classes)"
        )
    return (
        "an input of this model is an index, and random values are out of range: pass calibration "
        "or evaluation data, which the farm then uses"
    )


def fixed_inside(asked: Asked, _match: re.Match[str]) -> str:
    if asked.source in (None, SourceFormat.ONNX):
        again = "export it again with that axis dynamic"
    else:
        again = "export it again with that axis dynamic all the way: torch.export.Dim"
    return f"a size inside the model is fixed: pass --profile with the sizes it accepts, or {again}"


def no_kernel(asked: Asked, match: re.Match[str]) -> str:
    op = match["op"]
    if _as_submitted(asked):
        return (
            f"submit the model in fp32 (model.float() in PyTorch), which the farm checks on a CPU: ONNX "
            f"Runtime has no {op} in this type there; request fp16 or bf16 as precisions"
        )
    return either(
        asked.better(FP32, INT8, FP16),
        asked.elsewhere(Runtime.TENSORRT),
        f"rewrite {op}: ONNX Runtime has no kernel for it in this type",
    )


def too_new(_asked: Asked, _match: re.Match[str]) -> str:
    return "export it with opset 20, or update the worker's onnxruntime"


def unknown_operator(_asked: Asked, match: re.Match[str]) -> str:
    op = match["op"] or match["fn"]
    return f"rewrite {op} with standard ONNX operators, and export it again"


def contradiction(asked: Asked, _match: re.Match[str]) -> str:
    if not _as_submitted(asked):
        return _mistyped(asked)
    return (
        "fix the model: onnx.checker.check_model(model, full_check=True) shows the same; then export "
        "it again"
    )


def no_onnx_for(asked: Asked, match: re.Match[str]) -> str:
    return either(
        f"rewrite {match['op']} with operators ONNX supports",
        "build it for torchscript:cpu, which needs no ONNX" if asked.target is None else "",
    )


def other_torch(_asked: Asked, _match: re.Match[str]) -> str:
    return (
        f"save it with the worker's torch ({version('torch')}), install the torch that saved it "
        "on the worker, or submit the output of torch.onnx.export(program, dynamo=True) from there"
    )


def unsupported(asked: Asked, _match: re.Match[str]) -> str:
    return either(
        "rewrite that operator",
        asked.elsewhere(Runtime.TENSORRT, Runtime.ONNXRUNTIME),
        asked.better(FP32, FP16),
    )
