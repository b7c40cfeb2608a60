"""An engine's tensors as Triton describes them: names, types, dims, the batch, and a warm-up sample. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from farm.errors import TritonUnsupported
from farm.registry.pbtxt import Message, Value, Word
from farm.schemas.engines import EngineView
from farm.specs.runtime import Runtime
from farm.specs.shapes import ANONYMOUS, TensorSpec

#: numpy's name → Triton's. fp8 has none, and no engine takes strings.
_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
_BATCH = re.compile(r"(\w*[_.])?batch(_?size)?|n|b|bs", re.IGNORECASE)
_SEQUENCE = re.compile(
    r"[tsl]|(\w*_)?(seq|sequence|time|length|len|frames?|steps?)(_?len(gth)?)?", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How many samples Triton may stack on the first axis of every tensor; zero if it may not."""

    max: int
    opt: int


_NONE = Batching(max=0, opt=1)


def interface(engine: EngineView) -> tuple[object, ...]:
    """What engines that are one model of Triton have in common."""
    return (engine.inputs, engine.outputs, bool(_batch_axis(engine)))


def batching(engines: Sequence[EngineView]) -> Batching:
    """The batch that all engines take, by their first profiles."""
    found = [_batching(one) for one in engines]
    return Batching(max=min(one.max for one in found), opt=min(one.opt for one in found))


def _batching(engine: EngineView) -> Batching:
    if not _batch_axis(engine) or not engine.profiles:
        return _NONE
    ranges = [engine.profiles[0].get(spec.name) for spec in engine.inputs]
    sizes = [(one.min[0], one.opt[0], one.max[0]) for one in ranges if one and not one.values]
    # A server's requests may be of one sample.
    if len(sizes) < len(ranges) or any(low > 1 for low, _, _ in sizes):
        return _NONE
    most = min(high for _, _, high in sizes)
    return Batching(max=most, opt=max(1, min(most, *(mid for _, mid, _ in sizes))))


def _batch_axis(engine: EngineView) -> str | None:
    """The first axis, if it is the same dynamic one of every tensor, and by all names the batch."""
    specs = [*engine.inputs, *engine.outputs]
    firsts = {spec.shape[0] if spec.shape else None for spec in specs}
    if len(firsts) != 1 or not engine.inputs:
        return None
    [axis] = firsts
    if not isinstance(axis, str) or axis == ANONYMOUS or _SEQUENCE.fullmatch(axis):
        return None
    later = {size for spec in specs for size in spec.shape[1:] if isinstance(size, str)}
    others = any(_BATCH.fullmatch(size) for size in later - {axis})
    return None if axis in later or (others and not _BATCH.fullmatch(axis)) else axis


def names(engine: EngineView) -> tuple[list[str], list[str]]:
    """What Triton calls the inputs and the outputs.

    The PyTorch backend knows tensors by their places, which follow two underscores.
    """
    if engine.runtime is not Runtime.TORCHSCRIPT:
        return [one.name for one in engine.inputs], [one.name for one in engine.outputs]
    return _placed(engine.inputs, "INPUT"), _placed(engine.outputs, "OUTPUT")


def _placed(specs: Sequence[TensorSpec], otherwise: str) -> list[str]:
    # The first two underscores in a row end the name.
    kept = (re.sub("_+", "_", one.name).strip("_") or otherwise for one in specs)
    return [f"{name}__{place}" for place, name in enumerate(kept)]


def tensor(
    name: str,
    spec: TensorSpec,
    batch: Batching,
    *,
    is_shape: bool = False,
    takes_scalars: bool = False,
) -> Message:
    """A ModelInput or ModelOutput.

    Parameters:
        takes_scalars: whether the backend makes a scalar of one value in a row.

    Raises:
        TritonUnsupported: its type has no name in Triton, or Triton can't pass its shape on.
    """
    shape = _dims(spec, batch)
    # Triton's dims are never empty.
    fields: dict[str, Value] = {"name": name, "data_type": Word(_type(spec)), "dims": shape or [1]}
    if not shape and batch.max:
        fields["reshape"] = {"shape": []}
    elif not shape and not takes_scalars:
        raise TritonUnsupported(
            f"tensor {spec.name!r} is a scalar, which Triton has in batches alone",
            hint="have the model take and give a tensor of shape [1], or fix the input: --fix",
        )
    if is_shape:
        fields["is_shape_tensor"] = True
    return fields


def _dims(spec: TensorSpec, batch: Batching) -> list[int]:
    """The sizes of a tensor's axes without the batch, -1 for dynamic ones."""
    sizes = spec.shape[1:] if batch.max else spec.shape
    return [size if isinstance(size, int) and size > 0 else -1 for size in sizes]


def _type(spec: TensorSpec) -> str:
    try:
        return _TYPES[spec.dtype]
    except KeyError:
        raise TritonUnsupported(
            f"tensor {spec.name!r} is {spec.dtype}, a type that Triton's requests don't have",
            hint="have the model take and give fp16 or fp32, and cast inside",
        ) from None


def warmup(engine: EngineView, names: Sequence[str], batch: Batching) -> Message | None:
    """A first batch of zeros at the profile's opt, so that no client waits for what a first run sets up.

    None if zeros wouldn't do.
    """
    inputs: list[Value] = []
    for name, spec in zip(names, engine.inputs, strict=True):
        shape = _warm_shape(engine, spec, batch)
        if shape is None:
            return None
        given: Message = {"data_type": Word(_type(spec)), "dims": shape or [1], "zero_data": True}
        inputs.append({"key": name, "value": given})
    if not inputs:
        return None
    return {"name": "zeros", "batch_size": batch.opt if batch.max else 1, "inputs": inputs}


def _warm_shape(engine: EngineView, spec: TensorSpec, batch: Batching) -> list[int] | None:
    ranges = next((one[spec.name] for one in engine.profiles[:1] if spec.name in one), None)
    if ranges is not None and ranges.values:
        return None  # its values are sizes
    known = ranges.opt if ranges is not None else spec.shape
    sizes = known[1:] if batch.max else known
    if len(known) != len(spec.shape):
        return None
    whole = [size for size in sizes if isinstance(size, int) and size > 0]
    return whole if len(whole) == len(sizes) else None
