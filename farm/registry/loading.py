"""How to run a pulled engine: a few lines of Python by runtime. Pure, no I/O.

They are texts for users and for what serves an engine, kept here alone: manifests, ``farm pull`` and the
documents show what ``text`` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from string import Template

from farm.schemas.engines import EngineView
from farm.specs.gpus import CPU
from farm.specs.quoting import quoted
from farm.specs.runtime import Runtime
from farm.specs.shapes import TensorSpec

_TENSORRT = """\
from pathlib import Path

import $module as trt
import torch

log = trt.Logger(trt.Logger.WARNING)
runtime = trt.Runtime(log)
${before}engine = runtime.deserialize_cuda_engine(Path($path).read_bytes())
context = engine.create_execution_context()
$inputs
for name, tensor in inputs.items():
    context.set_input_shape(name, tuple(tensor.shape))
    context.set_tensor_address(name, tensor.data_ptr())
types = $types
outputs = {
    name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
    for name, dtype in types.items()
}
for name, tensor in outputs.items():
    context.set_tensor_address(name, tensor.data_ptr())
context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
torch.cuda.synchronize()
"""

_ONNXRUNTIME = """\
import numpy
import onnxruntime

${before}providers = $providers
session = onnxruntime.InferenceSession($path, providers=providers)
$inputs
names = [one.name for one in session.get_outputs()]
outputs = dict(zip(names, session.run(names, inputs)))
"""

_AOTINDUCTOR = """\
import json
import os

os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
import torch
from torch._inductor import cpu_vec_isa

# Packages use AVX2. Looking for wider vectors compiles and runs a program for each: half a minute.
known = cpu_vec_isa.supported_vec_isa_list
cpu_vec_isa.supported_vec_isa_list = [one for one in known if str(one) == "avx2"]

model = torch._inductor.aoti_load_package($path, run_single_threaded=True)
farm = json.loads(model.get_metadata()["engine_farm"])
torch.set_float32_matmul_precision("high" if farm["tf32"] else "highest")
torch.backends.cudnn.allow_tf32 = farm["tf32"]
torch.backends.cudnn.benchmark = True
$inputs
with torch.inference_mode():
    made = model(*(inputs[one["name"]] for one in farm["inputs"]))
outputs = dict(zip((one["name"] for one in farm["outputs"]), made))
"""

_TORCHSCRIPT = """\
import torch

model = torch.jit.load($path)
$inputs
with torch.inference_mode():
    made = model(*inputs.values())  # in this order
outputs = dict(zip($outputs, made if isinstance(made, tuple) else [made]))
"""

TEMPLATES: Mapping[Runtime, str] = {
    Runtime.TENSORRT: _TENSORRT,
    Runtime.TENSORRT_RTX: _TENSORRT,
    Runtime.ONNXRUNTIME: _ONNXRUNTIME,
    Runtime.AOTINDUCTOR: _AOTINDUCTOR,
    Runtime.TORCHSCRIPT: _TORCHSCRIPT,
}

_MODULES = {Runtime.TENSORRT: "tensorrt", Runtime.TENSORRT_RTX: "tensorrt_rtx"}
_WIDTH = 80  #: of a dict on one line


def text(engine: EngineView) -> str:
    """Python source that loads an engine from the file that a pull makes, and runs it on zeros.

    Its ``inputs`` have the first profile's optimal shapes; ``outputs`` holds the results by name.
    """
    given = _numpy if engine.runtime is Runtime.ONNXRUNTIME else _torch
    return Template(TEMPLATES[engine.runtime]).substitute(
        path=quoted(engine.file_name()),
        module=_MODULES.get(engine.runtime, ""),
        before="".join(f"{line}\n" for line in _before(engine)),
        providers=_providers(engine),
        inputs=_inputs(engine, given),
        types=_dict({spec.name: _torch_type(spec) for spec in engine.outputs}),
        outputs=f"[{', '.join(quoted(spec.name) for spec in engine.outputs)}]",
    )


def _before(engine: EngineView) -> list[str]:
    """What has to happen before this engine is loaded."""
    if engine.runtime is Runtime.ONNXRUNTIME:
        return [] if engine.gpu == CPU else ["onnxruntime.preload_dlls()", _options(engine)]
    lines = []
    if engine.options and engine.options.version_compatible:
        lines.append("runtime.engine_host_code_allowed = True")
    for digest in engine.options.plugins if engine.options else ():
        lines.append(f'trt.get_plugin_registry().load_library("plugin.so")  # {digest}')
    return lines


def _providers(engine: EngineView) -> str:
    if engine.gpu == CPU:
        return '["CPUExecutionProvider"]'
    return '[("CUDAExecutionProvider", options), "CPUExecutionProvider"]'


def _options(engine: EngineView) -> str:
    """The provider's options that the engine was built and timed with."""
    chosen = engine.provider.options if engine.provider else {}
    return f"options = {_dict({name: quoted(value) for name, value in chosen.items()})}"


_Given = Callable[[EngineView, TensorSpec], str]


def _inputs(engine: EngineView, given: _Given) -> str:
    made = _dict({spec.name: given(engine, spec) for spec in engine.inputs})
    return f"# Zeros stand in for your data.\ninputs = {made}"


def _numpy(engine: EngineView, spec: TensorSpec) -> str:
    shape, values = _shape(engine, spec), _values(engine, spec)
    if values is not None:
        return f"numpy.array({values}, {quoted(spec.dtype)}).reshape({shape})"
    return f"numpy.zeros({shape}, {quoted(spec.dtype)})"


def _torch(engine: EngineView, spec: TensorSpec) -> str:
    shape, values = _shape(engine, spec), _values(engine, spec)
    dtype = f", dtype={_torch_type(spec)}"
    if values is not None:  # TensorRT reads sizes on the host
        return f"torch.tensor({values}{dtype}).reshape({shape})"
    where = "" if engine.gpu == CPU else ', device="cuda"'
    sizes = ", ".join(map(str, shape)) or "()"
    return f"torch.zeros({sizes}{'' if spec.dtype == 'float32' else dtype}{where})"


def _torch_type(spec: TensorSpec) -> str:
    # It is what a job's process said: no code until it is a name.
    is_name = spec.dtype.isidentifier()
    return f"torch.{spec.dtype}" if is_name else f"getattr(torch, {quoted(spec.dtype)})"


def _shape(engine: EngineView, spec: TensorSpec) -> tuple[int, ...]:
    """The first profile's optimal shape, or else the shape with every dynamic axis 1."""
    for profile in engine.profiles[:1]:
        if spec.name in profile:
            return profile[spec.name].opt
    return tuple(size if isinstance(size, int) else 1 for size in spec.shape)


def _values(engine: EngineView, spec: TensorSpec) -> list[int] | None:
    """The values of an input that says a size."""
    for profile in engine.profiles[:1]:
        if spec.name in profile and (values := profile[spec.name].values):
            return list(values.opt)
    return None


def _dict(entries: Mapping[str, str]) -> str:
    """A dict of expressions, on one line if it fits."""
    written = [f"{quoted(name)}: {value}" for name, value in entries.items()]
    line = f"{{{', '.join(written)}}}"
    if len(line) <= _WIDTH:
        return line
    return "{\n" + "".join(f"    {entry},\n" for entry in written) + "}"
