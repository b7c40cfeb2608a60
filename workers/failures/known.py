"""Known error messages of libraries and their hints, depending on the request.

A stage raises its error ``from`` the library's. At the stage's boundary (``stage_errors``) the message is
looked up here, so that a hint never advises what was already requested or what the target lacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from farm.errors import ChildOutOfMemory, InvalidModel, StageFailed
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from workers.failures import answers
from workers.failures.asked import Asked, either

FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8


class Said(Exception):
    """A library's message that it doesn't raise itself: the cause of the farm's error."""


Answer = Callable[[Asked, re.Match[str]], str]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A failure recognised by its message."""

    pattern: re.Pattern[str]
    answer: Answer
    error: type[StageFailed] = InvalidModel  #: if no stage has given it a class


def known(text: str, asked: Asked) -> tuple[Known, str] | None:
    """The known failure with this message, and its hint; the first match in the table wins."""
    for one in TABLE:
        match = one.pattern.search(text)
        if match:
            return one, one.answer(asked, match)
    return None


def _plain(text: str) -> Answer:
    return lambda _asked, _match: text


def _entry(pattern: str, answer: Answer | str, error: type[StageFailed] = InvalidModel) -> Known:
    given = _plain(answer) if isinstance(answer, str) else answer
    return Known(pattern=re.compile(pattern), answer=given, error=error)


#: The first match wins, so more specific entries come first.
TABLE: tuple[Known, ...] = (
    # Memory, from any library
    _entry(
        r"(?i)\bout of memory\b|bad_alloc|can't allocate memory|cudaErrorMemoryAllocation"
        r"|Failed to allocate memory for requested buffer|CUBLAS_STATUS_ALLOC_FAILED",
        answers.memory,
        ChildOutOfMemory,
    ),
    # TensorRT's parser and builders, tensorrt-rtx 1.7
    _entry(r"FP32 GEMM is not supported", answers.fp32_on_turing),
    _entry(r"model contains HW-specific datatypes: (?P<type>\w+)", answers.lacks_type),
    _entry(r"NonZero plugin creator|operator NonZero\b", answers.value_shaped),
    _entry(
        r"checkCalculationStatusSanity|isInFlight",
        lambda asked, _: either(
            "compute that shape from shapes: here it depends on an input's values, which TensorRT "
            "can't plan for",
            asked.elsewhere(Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"plugin was not found in the plugin registry.*operator (?P<op>\w+)",
        lambda asked, match: either(
            f"rewrite {match['op']}: TensorRT-RTX has it only as a plugin, which can't be created on a "
            "worker without a GPU",
            asked.elsewhere(Runtime.TENSORRT, Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"ISqueezeLayer without an axes input",
        lambda asked, _: either(
            "specify the Squeeze's axes (from opset 13 on as an input): without them TensorRT can't tell "
            "which axes of unknown size are 1",
            asked.elsewhere(Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(r"Plugin not found.*operator (?P<op>\w+)", answers.lacks_operator),
    _entry(r"\bfalse \(operator (?P<op>\w+)", answers.lacks_operator),
    _entry(
        r"has type UInt8 but must have type",
        "cast the uint8 input to float before anything else, such as a Transpose: "
        "TensorRT supports uint8 only for inputs",
    ),
    _entry(
        r"Found unsupported input type of (?P<type>\w+)",
        lambda _asked, match: (
            f"cast the operands to float32 there: TensorRT lacks that operator in {match['type']}"
        ),
    ),
    _entry(
        r"Failed to convert ONNX date type to TensorRT data type|Unsupported data type for the Cast"
        r"|convertOnnxWeights\(initializer",
        lambda asked, _: either(
            "use TensorRT's types for every input, weight and Cast (float32, float16, bfloat16, "
            "int64, int32, int8, uint8, bool)",
            asked.elsewhere(Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"Failed to convert ONNX dimensions to TensorRT dimensions",
        lambda asked, _: either(
            "reshape the input to 8 axes or fewer, TensorRT's limit",
            asked.elsewhere(Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"shiftIsAllZeros|Non-zero zero point is not supported",
        lambda asked, _: either(
            "quantise it symmetrically, in int8 with zero points of 0, as TensorRT requires",
            f"submit the model without Q/DQ, and let the farm calibrate it: {asked.better(INT8)}"
            if asked.better(INT8)
            else "",
            asked.elsewhere(Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"(?:operation|Operation (?P<op>\w+)) must have same input types\. But they are of types",
        answers.mixed_types,
    ),
    _entry(
        r"must have (?:the )?same input types\. But they are of types.*?(?:operator (?P<op>\w+)|$)",
        answers.mixed_types,
    ),
    _entry(
        r"missing values for shape input|dynamic or shape inputs, but no optimization profile",
        answers.size_input,
    ),
    _entry(
        r"Strided & Dilated Deconv are currently not supported",
        lambda asked, _: either(
            "rewrite the transposed convolution with a stride or with dilation, not both",
            asked.elsewhere(Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"\(ctx->tensors\(\)\.count\(inputName\)\): Node input was not registered",
        lambda asked, _: either(
            "make that input explicit: an omitted Loop condition as a constant True, a sparse "
            "weight as a dense one",
            asked.elsewhere(Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"Kernel weight dimension failed to broadcast to input",
        "check the model's shapes: a convolution's weights don't fit its input's channels",
    ),
    _entry(
        r"has no runners that implement it",
        lambda asked, _: either(
            "run that operator outside the engine (as is common for NonMaxSuppression): "
            f"{asked.target.runtime if asked.target else 'TensorRT'} has no kernel for it",
            asked.elsewhere(Runtime.TENSORRT, Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"Could not find any implementation for node",
        lambda asked, _: either(
            "if workspace_mib is set, omit or raise it",
            asked.better(FP16, FP32),
            asked.elsewhere(Runtime.TENSORRT_RTX, Runtime.ONNXRUNTIME),
        ),
    ),
    _entry(
        r"input tensor __\w+ is missing dimensions in profile",
        "don't return an input as an output, or put an operator between the two (Mul by 1)",
    ),
    _entry(
        r"Dropout operator in training mode",
        "put the model in eval mode before exporting it: model.eval()",
    ),
    _entry(
        r"IFillLayer::setToType",
        lambda asked, _: either(
            asked.better(FP16, FP32),
            "remove the random operator: its values differ from run to run",
        ),
    ),
    _entry(
        r"(?i)optimization profile|is missing dimensions in profile|the profile .* was refused",
        "check the profiles' min, opt and max against the model's inputs",
    ),
    # ONNX Runtime 1.31: loading
    _entry(
        r"guarantees\* support for models stamped|Unsupported model IR version|"
        r"opset \d+ is under development",
        answers.too_new,
    ),
    _entry(r"Could not find an implementation for (?P<op>\w+)\(", answers.no_kernel),
    _entry(
        r"Type 'tensor\((?P<type>\w+)\)' of input parameter .* of operator \((?P<op>\w+)\)"
        r".*is invalid",
        answers.no_kernel,
    ),
    _entry(r"Optype \((?P<op>\w+)\) bound to different types", answers.mixed_types),
    _entry(
        r"No Op registered for (?P<op>\w+)|: (?P<fn>[\w.]+:\w+)\(-?\d+\) is not a registered",
        answers.unknown_operator,
    ),
    _entry(
        r"External data|external data|file_length.*out of bounds|Protobuf parsing failed",
        "upload the whole model: the folder or the archive with its data files",
    ),
    _entry(
        r"ShapeInferenceError|is not a graph input, initializer, or output of a previous node"
        r"|Duplicate definition of name|graph is not acyclic",
        answers.contradiction,
    ),
    _entry(
        r"MLDataType for: tensor\((?P<type>\w+)\) is not currently registered",
        lambda _asked, match: (
            f"represent {match['type']} as float tensors of real and imaginary parts: no runtime here "
            "supports it"
        ),
    ),
    # ONNX Runtime 1.31: running
    _entry(
        r"indices element out of data bounds|invalid ind(?:ex|ice) found|index out of range"
        r"|out of bounds for dimension",
        answers.index,
    ),
    _entry(
        r"k argument \[-?\d+\] should not be greater|tensor\.cc:\d+ CalculateTensorStorageSize",
        answers.size_input,
    ),
    _entry(
        r"requested_shape_size was false|[Dd]imension mismatch|Attempting to broadcast an axis"
        r"|Non concat axis dimensions must match|input_shape\[i\] == 1|Invalid input shape"
        r"|Invalid num_outputs value|Size of dimension being split|cannot be reshaped|"
        r"Got invalid dimensions for input",
        answers.fixed_inside,
    ),
    _entry(
        r"(?i)integer division by zero",
        "the model divides by an integer that is 0: pass data that avoids it, or fix the model",
    ),
    _entry(
        r"no kernel image is available|libcudnn|libcublas|libonnxruntime_providers_cuda",
        "install onnxruntime-gpu and matching CUDA libraries on the worker: "
        "pip install 'engine-farm[worker,gpu]'",
    ),
    # torch 2.13: its exporter, and loading files of another torch
    _entry(r"No ONNX function found for <OpOverload\(op='(?P<op>[\w.:]+)'", answers.no_onnx_for),
    _entry(
        r"Serialized schema version|archive version \d+ does not match",
        answers.other_torch,
    ),
    _entry(
        r"PytorchStreamReader failed|invalid header or archive is corrupted",
        "the file is damaged or incomplete: save it and upload it again",
    ),
    _entry(
        r"Failed deserializing node Node\(target='(?P<op>[\w.:]+)'",
        lambda _asked, match: (
            f"rewrite {match['op']} with PyTorch's own operators, or save the program with an older "
            "torch: the worker's lacks it"
        ),
    ),
    _entry(
        r"Unable to deserialize output node",
        "return only tensors from forward, in tuples or dicts: wrap the module in one that does",
    ),
    _entry(
        r"GuardOnDataDependent|data-dependent (?:expression|control flow|branching)|"
        r"specialized integer from data-dependent",
        "use torch.cond or torch.where instead of Python branches on a tensor's values, and export it "
        "yourself",
    ),
    # ModelOpt 0.47, and the runtimes it uses
    _entry(
        r"unexpected dtype: object|for abs\(\): 'str'|could not convert string to float",
        "keep strings outside the model and pass numbers: string values can't be compared",
    ),
    _entry(
        r"dtype is unsupported for objects of type: list",
        lambda asked, _: either(
            asked.better(BF16, FP32),
            "remove sequences from the model: ModelOpt has to run it, and doesn't support them",
        ),
    ),
    _entry(
        r"Cannot restore public graph output metadata",
        lambda asked, _: either(
            "don't return inputs or weights as outputs, or put an operator between the two",
            asked.better(FP32),
        ),
    ),
    # Other unsupported features of TensorRT and others
    _entry(r"(?i)(?:is|are) (?:currently )?not supported|does not support", answers.unsupported),
)
