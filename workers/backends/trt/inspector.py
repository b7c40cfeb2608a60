"""Reads what a TensorRT engine says about itself: its layers after fusion, and its memory.

The inspector's JSON has no published schema: each layer's name, kind, inputs and outputs with format and
type in words, its kernel (``TacticName``), and in ``Metadata`` the ONNX nodes it was made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from farm.reports.layers import Layer, LayerTensor, MemoryView
from workers.backends.trt.interface import Interface, of_engine

if TYPE_CHECKING:
    import tensorrt as types


@dataclass(frozen=True, kw_only=True)
class Inspected:
    layers: tuple[Layer, ...]
    memory: MemoryView
    interface: Interface  #: its inputs and outputs


def inspect(trt: Any, log: Any, plan: bytes, *, host_code: bool) -> Inspected | None:
    """Read an engine back on the GPU it was built for; None when that fails, with the reason in the log.

    Parameters:
        host_code: whether it may run its own code on the host, as version-compatible engines do.
    """
    runtime: types.Runtime = trt.Runtime(log)
    if host_code and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    engine: types.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        print("the engine can't be loaded here and isn't inspected", flush=True)
        return None
    inspector: types.EngineInspector = engine.create_engine_inspector()
    told = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = layers_of(told)
    # A later TensorRT may use another format: a missing report must not fail the build.
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        print(f"can't parse the inspector's output: {err!r}", flush=True)
        return None
    return Inspected(layers=layers, memory=_memory(trt, engine), interface=of_engine(trt, engine))


def _memory(trt: Any, engine: Any) -> MemoryView:
    by_profile: list[int] = []
    if hasattr(engine, "get_device_memory_size_for_profile_v2"):
        profiles = range(engine.num_optimization_profiles)
        by_profile = [engine.get_device_memory_size_for_profile_v2(n) for n in profiles]
    weights = None
    if hasattr(engine, "get_engine_stat"):  # since TensorRT 10.14
        weights = engine.get_engine_stat(trt.EngineStat.TOTAL_WEIGHTS_SIZE)
    return MemoryView(
        context_bytes=getattr(engine, "device_memory_size_v2", None),
        context_bytes_by_profile=by_profile,
        weights_bytes=weights,
        streamable_weights_bytes=getattr(engine, "streamable_weights_size", None),
        aux_streams=getattr(engine, "num_aux_streams", None),
        constants={},
    )


def layers_of(told: str) -> tuple[Layer, ...]:
    """The layers in the inspector's JSON; only their names if the engine was built without details."""
    return tuple(map(_layer, json.loads(told)["Layers"]))


_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[ ]|$)")


def _layer(told: Mapping[str, Any] | str) -> Layer:
    if isinstance(told, str):
        return Layer(name=told, type="?", inputs=[], outputs=[])
    return Layer(
        name=told["Name"],
        type=told.get("LayerType", "?"),
        inputs=[_tensor(one) for one in told.get("Inputs", ())],
        outputs=[_tensor(one) for one in told.get("Outputs", ())],
        kernel=told.get("TacticName") or None,
        operators=operators_of(told.get("Metadata") or ""),
    )


def operators_of(metadata: str) -> list[str]:
    """The ONNX nodes in a layer's metadata; an unnamed one is ``node_of_OUTPUT``."""
    return _ONNX_NODE.findall(metadata)


def _tensor(told: Mapping[str, Any]) -> LayerTensor:
    words = told.get("Format/Datatype") or told.get("Datatype")
    return LayerTensor(
        name=told.get("Name", "?"),
        type=_type(words),
        shape=told.get("Dimensions"),
        format=words,
    )


#: Words in the inspector's description of a tensor → DataType's name, as for the network's layers.
_TYPES = {
    "fp32": "float",
    "float": "float",
    "fp16": "half",
    "half": "half",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "fp8": "fp8",
    "fp4": "fp4",
    "int4": "int4",
    "int8": "int8",
    "uint8": "uint8",
    "int32": "int32",
    "int64": "int64",
    "bool": "bool",
}


def _type(words: str | None) -> str | None:
    """``Thirty-two wide channel vectorized row major Int8 format`` → ``int8``; ``Half`` → ``half``."""
    found = (_TYPES.get(word.strip(".,").lower()) for word in (words or "").split())
    return next(filter(None, found), None)
