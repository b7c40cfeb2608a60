"""What Triton Inference Server needs to serve an engine: ``config.pbtxt``, and what lies beside it.

Pure, no I/O, no protobuf library: the API's tar, ``farm pull --triton`` and ``farm sync`` write what this
says. A model is a folder: ``config.pbtxt``, and a folder named like the farm's version with the engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from farm.errors import TritonUnsupported
from farm.registry import pbtxt
from farm.registry.pbtxt import Message, Value, Word
from farm.registry.triton_python import ENGINE, MODEL_FILE, MODEL_PY
from farm.registry.triton_tensors import Batching, batching, interface, names, tensor, warmup
from farm.schemas.engines import EngineView
from farm.specs import gpus
from farm.specs.gpus import CPU
from farm.specs.runtime import Runtime
from farm.specs.triton import UNSUPPORTED, Backend

CONFIG = "config.pbtxt"
#: How the farm's configs begin: other models in a repository aren't touched.
MADE_BY = "# Made by engine-farm: "


_SERVES = re.compile(r"^version_policy \{\s+specific \{\s+versions: \[(\d{1,18})\]$", re.MULTILINE)
_SUFFIXES = {
    Runtime.TENSORRT: "plan",
    Runtime.ONNXRUNTIME: "onnx",
    Runtime.TORCHSCRIPT: "pt",
}
_PLATFORMS = {Runtime.TENSORRT: "tensorrt_plan", Runtime.TORCHSCRIPT: "pytorch_libtorch"}
#: What to do about an engine that Triton can't serve.
_INSTEAD = {
    Runtime.TENSORRT_RTX: "build it for classic TensorRT, --gpu tensorrt:{gpu}; or for onnxruntime:{gpu}",
    Runtime.AOTINDUCTOR: "serve it from Python (load in its manifest), or build it for onnxruntime:{gpu}",
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of a Triton repository."""

    name: str
    version: int
    config: str  #: ``config.pbtxt``
    engines: Mapping[str, EngineView]  #: file in the version's folder → engine
    files: Mapping[str, bytes]  #: further files there
    notes: tuple[str, ...] = ()  #: what Triton needs to be given beside


def model(engine: EngineView, *, backend: Backend | None = None, name: str | None = None) -> Model:
    """A model that serves one engine, under its model's name by default.

    Parameters:
        backend: for an engine of ONNX Runtime; by default Python for ``cpu``, which needs the very version
            that the engine was measured with, and Triton's own for GPUs.

    Raises:
        TritonUnsupported: Triton can't load it, or can't exchange a type of its tensors.
    """
    return _model([engine], name or engine.model, _backend(engine, backend))


def models(
    engines: Sequence[EngineView], *, backend: Backend | None = None
) -> tuple[list[Model], list[tuple[EngineView, TritonUnsupported]]]:
    """Models that serve the engines of one version side by side, and the engines that Triton can't serve.

    TensorRT plans of the same interface are one model, which takes the plan for its GPU's compute
    capability. If there are more, each model but theirs has its target in its name.
    """
    shared, alone, left_out = _grouped(engines, backend)
    several = len(alone) + bool(shared) > 1
    made = [_model(shared, shared[0].model, None)] if shared else []
    taken = {one.name for one in made}
    for engine in alone:
        name = next(one for one in _own_names(engine) if one not in taken)
        taken.add(name)
        made.append(model(engine, backend=backend, name=name if several else None))
    return made, left_out


def version_of(config: str) -> int | None:
    """The version that one of the farm's configs serves."""
    found = _SERVES.search(config)
    return int(found[1]) if found else None


def _grouped(
    engines: Sequence[EngineView], backend: Backend | None
) -> tuple[list[EngineView], list[EngineView], list[tuple[EngineView, TritonUnsupported]]]:
    """Plans that one model can serve; other engines; and those that Triton can't serve."""
    shared: dict[str, EngineView] = {}
    alone, left_out = [], []
    for engine in engines:
        try:
            model(engine, backend=backend)
        except TritonUnsupported as err:
            left_out.append((engine, err))
            continue
        capability = gpus.compute_capability(engine.gpu)
        is_plan = engine.runtime is Runtime.TENSORRT and capability not in shared
        if is_plan and all(interface(engine) == interface(one) for one in shared.values()):
            shared[capability] = engine
        else:
            alone.append(engine)
    return list(shared.values()), alone, left_out


def _own_names(engine: EngineView) -> Iterator[str]:
    name = f"{engine.model}-{engine.runtime}-{engine.gpu}"
    yield name
    yield f"{name}-{engine.precision}"
    yield f"{name}-{engine.id}"


def _backend(engine: EngineView, asked: Backend | None) -> Backend | None:
    """What executes an engine of ONNX Runtime; None for other runtimes, which have one backend each."""
    if engine.runtime is not Runtime.ONNXRUNTIME:
        return None
    if asked is Backend.PYTHON and engine.gpu != CPU:
        raise TritonUnsupported(
            f"the Python backend's wrapper is for cpu, and engine {engine.id} is for {engine.gpu}",
            hint="omit the backend: Triton's ONNX Runtime serves it",
        )
    return asked or (Backend.PYTHON if engine.gpu == CPU else Backend.ONNXRUNTIME)


def _model(engines: Sequence[EngineView], name: str, backend: Backend | None) -> Model:
    """A model of engines that share an interface."""
    first = engines[0]
    if first.runtime in UNSUPPORTED:
        raise TritonUnsupported(
            f"engine {first.id} ({first.runtime}:{first.gpu}) isn't for Triton: "
            f"{UNSUPPORTED[first.runtime]}",
            hint=_INSTEAD[first.runtime].format(gpu=first.gpu),
        )
    files = {f"{one.id}.{_SUFFIXES[one.runtime]}": one for one in engines}
    message = _config(name, files, backend)
    return Model(
        name=name,
        version=first.version,
        config=f"{MADE_BY}{pbtxt.quoted(_title(engines))[1:-1]}\n{pbtxt.text(message)}",
        engines=files,
        files={MODEL_FILE: MODEL_PY.encode()} if backend is Backend.PYTHON else {},
        notes=tuple(dict.fromkeys(note for one in engines for note in _notes(one, backend))),
    )


def _title(engines: Sequence[EngineView]) -> str:
    first = engines[0]
    targets = ", ".join(f"{one.precision} for {one.runtime}:{one.gpu}" for one in engines)
    return f"{first.model} v{first.version}: {targets}"


def _config(name: str, files: Mapping[str, EngineView], backend: Backend | None) -> Message:
    """The fields of ModelConfig, in the order of Triton's documents."""
    engines = list(files.values())
    first = engines[0]
    # Of several, what a GPU takes that none was built for: a plan that runs on others, if there is one.
    file = next((name for name, one in files.items() if _is_portable(one)), next(iter(files)))
    batch = batching(engines)
    inputs, outputs = names(first)
    described = partial(tensor, batch=batch, takes_scalars=backend is Backend.PYTHON)
    fields: dict[str, Value] = {"name": name}
    if backend is None:
        fields["platform"] = _PLATFORMS[first.runtime]
    else:
        fields["backend"] = str(backend)
    fields["default_model_filename"] = MODEL_FILE if backend is Backend.PYTHON else file
    if len(files) > 1:
        fields["cc_model_filenames"] = [
            {"key": _capability(one.gpu), "value": path} for path, one in files.items()
        ]
    fields["max_batch_size"] = batch.max
    fields["input"] = [
        described(name, one, is_shape=_is_shape(first, one.name))
        for name, one in zip(inputs, first.inputs, strict=True)
    ]
    fields["output"] = [
        described(name, one) for name, one in zip(outputs, first.outputs, strict=True)
    ]
    # The tensors are this version's: served with them, another version's folder would answer wrongly.
    fields["version_policy"] = {"specific": {"versions": [first.version]}}
    kind = "KIND_CPU" if first.gpu == CPU else "KIND_GPU"
    fields["instance_group"] = [{"count": 1, "kind": Word(kind)}]
    if batch.max > 1:
        fields["dynamic_batching"] = _dynamic_batching(first, batch)
    fields["model_warmup"] = warmup(first, inputs, batch)
    if backend is Backend.PYTHON:
        fields["parameters"] = [{"key": ENGINE, "value": {"string_value": file}}]
    return fields


def _dynamic_batching(engine: EngineView, batch: Batching) -> Message:
    # A plan's kernels are tuned for the profile's opt; elsewhere the batch that has formed is as good.
    is_tuned = engine.runtime is Runtime.TENSORRT and batch.opt > 1
    return {"preferred_batch_size": [batch.opt]} if is_tuned else {}


def _is_portable(engine: EngineView) -> bool:
    return bool(engine.options and engine.options.hardware_compatibility_level != "none")


def _is_shape(engine: EngineView, name: str) -> bool:
    """Whether an input's values are sizes that TensorRT reads."""
    if engine.runtime is not Runtime.TENSORRT:
        return False
    return any(name in profile and profile[name].values for profile in engine.profiles)


def _capability(gpu: str) -> str:
    """``sm_89`` → ``8.9``"""
    return "{}.{}".format(*divmod(gpus.number(gpus.compute_capability(gpu)), 10))


def _notes(engine: EngineView, backend: Backend | None) -> Iterator[str]:
    if backend is Backend.PYTHON:
        yield (
            "Triton's Python backend needs numpy and onnxruntime in its Python: "
            f"pip install numpy onnxruntime=={engine.runtime_version}"
        )
    if engine.runtime is Runtime.TENSORRT and engine.options:
        if engine.options.version_compatible:
            yield "start Triton with --backend-config=tensorrt,version-compatible=true"
        for digest in engine.options.plugins:
            yield f"start Triton with --backend-config=tensorrt,plugins=LIBRARY, the library {digest}"
