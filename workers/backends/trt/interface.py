"""Inputs and outputs as TensorRT reports them: an fp64 model's engine takes fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farm.specs.shapes import ANONYMOUS, TensorSpec

if TYPE_CHECKING:
    import tensorrt as types

#: DataType → NumPy's name, as in TensorSpec.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "FP8": "float8_e4m3fn",
    "INT4": "int4",
    "FP4": "float4_e2m1fn",
}


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Inputs and outputs, as TensorRT reports them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def of_network(network: types.INetworkDefinition) -> Interface:
    """The interface of a parsed network."""
    inputs = (network.get_input(index) for index in range(network.num_inputs))
    outputs = (network.get_output(index) for index in range(network.num_outputs))
    return Interface(
        inputs=tuple(_spec(one.name, one.dtype, one.shape) for one in inputs),
        outputs=tuple(_spec(one.name, one.dtype, one.shape) for one in outputs),
    )


def of_engine(trt: Any, engine: types.ICudaEngine) -> Interface:
    """The interface of a loaded engine; all its profiles share it."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    specs: dict[bool, list[TensorSpec]] = {True: [], False: []}
    for name in names:
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        spec = _spec(name, engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
        specs[is_input].append(spec)
    return Interface(inputs=tuple(specs[True]), outputs=tuple(specs[False]))


def _spec(name: str, dtype: Any, shape: types.Dims) -> TensorSpec:
    try:
        sizes = [int(shape[axis]) for axis in range(len(shape))]
    except ValueError:  # its rank isn't known
        sizes = []
    return TensorSpec(
        name=name,
        dtype=_DTYPES.get(dtype.name, dtype.name.lower()),
        shape=tuple(size if size >= 0 else ANONYMOUS for size in sizes),
    )


def named(
    told: Sequence[TensorSpec], model: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], list[str]]:
    """TensorRT's inputs or outputs with the model's axis names, and how they differ from the model's."""
    of_model = {spec.name: spec for spec in model}
    specs, differences = [], []
    for spec in told:
        other = of_model.pop(spec.name, None)
        if other is None:
            differences.append(f"{spec.name!r} is in the engine but not in the model")
        elif len(other.shape) == len(spec.shape):
            pairs = zip(spec.shape, other.shape, strict=True)
            axes = tuple(o if s == ANONYMOUS else s for s, o in pairs)
            spec = spec.model_copy(update={"shape": axes})
        if other is not None and other.dtype != spec.dtype:
            differences.append(
                f"{spec.name!r} is {other.dtype} in the model but {spec.dtype} in the engine"
            )
        specs.append(spec)
    differences += [f"{name!r} is in the model but not in the engine" for name in of_model]
    return tuple(specs), differences
