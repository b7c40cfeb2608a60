"""Classic TensorRT as far as the adapter uses it, for machines without a GPU.

The parser, the network and the profiles are TensorRT-RTX's, so they are real. What needs a GPU is played:
timing, building, reading an engine back. Names and signatures are those of the published stubs
(``scripts/check_tensorrt.py`` compares them), behaviours those of the documentation. It proves what the
adapter asks for and what it makes of the answers, and nothing about TensorRT.

``GPU`` stands in for the GPU at hand, ``FALL_BACK`` names ONNX nodes for which there is no integer kernel,
``PLUGINS`` are the libraries that were loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorrt_rtx as rtx
from tensorrt_rtx import (  # noqa: F401
    DataType,
    Dims,
    IGridSampleLayer,
    ILogger,
    INetworkDefinition,
    IProgressMonitor,
    IResizeLayer,
    LayerInformationFormat,
    LayerType,
    Logger,
    OnnxParser,
    ProfilingVerbosity,
    TensorIOMode,
)

__version__ = "10.13.0.35"
GPU = "NVIDIA H200"
FALL_BACK: set[str] = set()
PLUGINS: list[str] = []


class NetworkDefinitionCreationFlag:
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag:
    TF32 = "TF32"
    SPARSE_WEIGHTS = "SPARSE_WEIGHTS"
    VERSION_COMPATIBLE = "VERSION_COMPATIBLE"
    WEIGHT_STREAMING = "WEIGHT_STREAMING"
    DISABLE_TIMING_CACHE = "DISABLE_TIMING_CACHE"


class MemoryPoolType:
    WORKSPACE = "WORKSPACE"


class TimingCacheKey:
    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


class ITimingCache:
    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Append entries; conflicting ones are skipped."""
        if not ignore_mismatch and input_cache.data["made"] != self.data["made"]:
            return False
        self.data["times"] = input_cache.data["times"] | self.data["times"]
        return True

    def queryKeys(self) -> list[TimingCacheKey]:  # noqa: N802
        return [TimingCacheKey(key) for key in self.data["times"]]

    def serialize(self) -> bytes:
        return json.dumps(self.data, sort_keys=True).encode()


def _made() -> list[str]:
    return [GPU, __version__]


class IBuilderConfig:
    def __init__(self, real: rtx.IBuilderConfig) -> None:
        self._real = real
        self.wants = {BuilderFlag.TF32}
        self.cache: ITimingCache | None = None
        self.builder_optimization_level = 3
        self.max_aux_streams = -1
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: IProgressMonitor | None = None

    def set_flag(self, flag: str) -> None:
        self.wants.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.wants.discard(flag)

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
        self.pool = (pool, pool_size)

    def add_optimization_profile(self, profile: rtx.IOptimizationProfile) -> int:
        return self._real.add_optimization_profile(profile)

    @property
    def num_optimization_profiles(self) -> int:
        return self._real.num_optimization_profiles

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if not serialized_timing_cache:
            return ITimingCache({"made": _made(), "times": {}})
        try:
            return ITimingCache(json.loads(serialized_timing_cache))
        except ValueError:
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and cache.data["made"] != _made():
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.cache


class IPluginRegistry:
    def load_library(self, plugin_path: str) -> object | None:
        """None if any of its plugins is registered already, or it can't be loaded."""
        if not Path(plugin_path).read_bytes().startswith(b"\x7fELF") or plugin_path in PLUGINS:
            return None
        PLUGINS.append(plugin_path)
        return object()


def get_plugin_registry() -> IPluginRegistry:
    return IPluginRegistry()


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._real = rtx.Builder(logger)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self._real.create_network(0)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._real.create_builder_config())

    def create_optimization_profile(self) -> rtx.IOptimizationProfile:
        return self._real.create_optimization_profile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        """Time each kind of layer that the cache hasn't, and write the layers down."""
        layers = list(_fused(network))
        if config.cache is not None and BuilderFlag.DISABLE_TIMING_CACHE not in config.wants:
            for layer in layers:
                what = json.dumps([layer["LayerType"], _described(layer)])
                key = f"0x{hashlib.md5(what.encode()).hexdigest()}"
                config.cache.data["times"].setdefault(key, 0.01)
        detailed = config.profiling_verbosity == ProfilingVerbosity.DETAILED
        return json.dumps(
            {
                "gpu": GPU,
                "profiles": config.num_optimization_profiles,
                "Layers": layers if detailed else [layer["Name"] for layer in layers],
                "Bindings": [tensor.name for _, tensor in _io(network)],
                "IO": {
                    tensor.name: [mode, tensor.dtype.name, [int(size) for size in tensor.shape]]
                    for mode, tensor in _io(network)
                },
            }
        ).encode()


def _io(network: INetworkDefinition) -> list[tuple[str, Any]]:
    return [
        *(("INPUT", network.get_input(n)) for n in range(network.num_inputs)),
        *(("OUTPUT", network.get_output(n)) for n in range(network.num_outputs)),
    ]


def _described(layer: dict[str, Any]) -> list[Any]:
    return [
        [tensor["Dimensions"], tensor["Format/Datatype"]]
        for tensor in [*layer["Inputs"], *layer["Outputs"]]
    ]


_PRODUCTS = (LayerType.CONVOLUTION, LayerType.MATRIX_MULTIPLY)
_IN_KERNELS = (LayerType.CONSTANT, LayerType.QUANTIZE, LayerType.DEQUANTIZE)
_FORMATS = {
    "FLOAT": "Row major linear FP32",
    "HALF": "Channel major FP16 format where channel % 8 == 0",
    "BF16": "Row major linear BFloat16 format",
    "INT8": "Thirty-two wide channel vectorized row major Int8 format",
    "FP8": "Row major linear FP8 format",
}


def _fused(network: INetworkDefinition) -> Iterator[dict[str, Any]]:
    """Each layer with the activation that follows it; Q/DQ in the kernels of the products."""
    layers = [network.get_layer(n) for n in range(network.num_layers)]
    makers = {layer.get_output(0).name: layer for layer in layers if layer.num_outputs}
    followers: dict[str, list[Any]] = {}
    for layer in layers:
        for n in range(layer.num_inputs):
            if layer.get_input(n) is not None:
                followers.setdefault(layer.get_input(n).name, []).append(layer)
    taken: set[str] = set()
    for layer in layers:
        if layer.type in _IN_KERNELS or layer.name in taken:
            continue
        parts = [layer]
        after = followers.get(layer.get_output(0).name, [])
        if layer.type in _PRODUCTS and [one.type for one in after] == [LayerType.ACTIVATION]:
            parts += after
            taken.add(after[0].name)
        yield _layer(parts, makers)


def _layer(parts: list[Any], makers: dict[str, Any]) -> dict[str, Any]:
    first, last = parts[0], parts[-1]
    inputs = [first.get_input(n) for n in range(first.num_inputs)]
    falls_back = any(f"[ONNX Layer: {name}]" == first.metadata for name in FALL_BACK)
    if first.type in _PRODUCTS and not falls_back:
        inputs = [_quantized(tensor, makers) for tensor in inputs]
    return {
        "Name": " + ".join(part.name for part in parts),
        "LayerType": "CaskGemmConvolution" if first.type in _PRODUCTS else first.type.name,
        "Inputs": [_tensor(tensor) for tensor in inputs if tensor is not None],
        "Outputs": [_tensor(last.get_output(n)) for n in range(last.num_outputs)],
        "TacticName": "a_kernel" if first.type in _PRODUCTS else "",
        "StreamId": 0,
        "Metadata": "\x1e".join(part.metadata for part in parts if part.metadata),
    }


def _quantized(tensor: Any, makers: dict[str, Any]) -> Any:
    maker = makers.get(tensor.name) if tensor is not None else None
    while maker is not None and maker.type == LayerType.SHUFFLE:
        maker = makers.get(maker.get_input(0).name)
    if maker is None or maker.type != LayerType.DEQUANTIZE:
        return tensor
    return maker.get_input(0)


def _tensor(tensor: Any) -> dict[str, Any]:
    return {
        "Name": tensor.name,
        "Location": "Device",
        "Dimensions": [int(size) for size in tensor.shape],
        "Format/Datatype": _FORMATS.get(tensor.dtype.name, tensor.dtype.name),
    }


class EngineInspector:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan

    def get_engine_information(self, format: Any) -> str:
        assert format == LayerInformationFormat.JSON
        return json.dumps({name: self._plan[name] for name in ("Layers", "Bindings")})


class ICudaEngine:
    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self.num_optimization_profiles = plan["profiles"]
        self.device_memory_size_v2 = 1 << 20
        self.streamable_weights_size = 0
        self.num_aux_streams = 0
        self.num_io_tensors = len(plan["IO"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._plan["IO"])[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.__members__[self._plan["IO"][name][0]]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.__members__[self._plan["IO"][name][1]]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._plan["IO"][name][2])

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._plan)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return (1 + profile_index) << 20


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        plan = json.loads(bytes(serialized_engine))
        return ICudaEngine(plan) if plan["gpu"] == GPU else None
