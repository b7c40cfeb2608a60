"""Compiles a lowered program to an AOTInductor package: a ``.pt2`` file of native code."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import _inductor
from torch.export import Dim, ExportedProgram, export

from farm.errors import EngineBuildFailed, FarmError
from farm.specs.shapes import Profile, TensorSpec
from farm.specs.values import Value
from workers.backends.aotinductor import compiler
from workers.graphs.check import brief
from workers.programs.lowered import Lowered

VERSION = torch.__version__
#: The entry in a package's metadata that holds its inputs, outputs and settings, as JSON.
FARM = "engine_farm"
#: A dynamic size that is another's multiple, or that one itself.
_MULTIPLE = re.compile(r"((?P<times>\d+)\*)?(?P<name>[^\W\d]\w*)")


class Signature(Value):
    """A package's inputs and outputs in call order, and the sizes it takes; its metadata hold it as JSON."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    smallest: dict[str, tuple[int, ...]]
    largest: dict[str, tuple[int, ...]]
    tf32: bool


def signature(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    profiles: Sequence[Profile],
    *,
    tf32: bool,
) -> Signature:
    """The signature of a package that takes all the sizes between the profiles' smallest and largest."""

    def bounds(which: str, most: Any) -> dict[str, tuple[int, ...]]:
        shapes = {one.name: [getattr(p[one.name], which) for p in profiles] for one in inputs}
        return {name: tuple(map(most, zip(*of, strict=True))) for name, of in shapes.items()}

    return Signature(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        smallest=bounds("min", min),
        largest=bounds("max", max),
        tf32=tf32,
    )


def traced(module: Lowered, examples: Sequence[torch.Tensor], of: Signature) -> ExportedProgram:
    """The program as it is compiled: static where the signature has one size.

    Raises:
        EngineBuildFailed: it can't be traced at these sizes.
    """
    dynamic = _dynamic(of)
    try:
        with torch.no_grad():
            return export(module, tuple(examples), dynamic_shapes=(dynamic,))
    except FarmError:
        raise
    except Exception as err:  # the tracer raises its own types and bare RuntimeErrors
        raise EngineBuildFailed(
            f"torch {VERSION} can't trace this program for the sizes of its profiles: {brief(err)}",
            hint="give the profile one size (min, opt and max equal), or use onnxruntime",
        ) from err


def _dynamic(of: Signature) -> tuple[dict[int, Any], ...]:
    """For each input its dynamic axes: one name is one size, and so is a multiple of it."""
    known: dict[str, Any] = {}
    for spec in of.inputs:
        for axis, size in enumerate(spec.shape):
            low, high = of.smallest[spec.name][axis], of.largest[spec.name][axis]
            if low != high and str(size).isidentifier() and size not in known:
                known[str(size)] = Dim(f"size{len(known)}", min=low, max=high)
    return tuple(
        {
            axis: _size(str(size), known, of.smallest[spec.name][axis], of.largest[spec.name][axis])
            for axis, size in enumerate(spec.shape)
            if of.smallest[spec.name][axis] != of.largest[spec.name][axis]
        }
        for spec in of.inputs
    )


def _size(size: str, known: Mapping[str, Any], low: int, high: int) -> Any:
    found = _MULTIPLE.fullmatch(size)
    if found is None or found["name"] not in known:
        return Dim.AUTO(min=low, max=high)  # the tracer infers how it depends on others
    made = known[found["name"]]
    return int(found["times"]) * made if found["times"] else made


def compile_package(program: ExportedProgram, of: Signature, package: Path) -> float:
    """Compile a traced program, and return the seconds it took.

    Raises:
        EngineBuildFailed: has the compiler's reason.
    """
    start = time.monotonic()
    os.environ.update(compiler.environment())
    _inductor.config.cpp.cxx = (None, os.environ["CXX"])  # read when it was imported
    choose_kernels(tf32=of.tf32)
    prepare_inductor()
    try:
        with torch.no_grad(), folder_for_compilers():
            _inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=_options(program, of)
            )
    except Exception as err:  # the compiler raises its own types, and bare RuntimeErrors
        print(err, flush=True)  # with what the C++ compiler said
        raise EngineBuildFailed(
            f"torch {VERSION} can't compile this program: {brief(err)}",
            hint="use onnxruntime or tensorrt, or rewrite that part of the model with other operators",
        ) from err
    return time.monotonic() - start


def prepare_inductor() -> None:
    """Have inductor compile in this process, wherever torch is installed."""
    from torch.utils import cpp_extension  # imports setuptools

    use_instruction_set()
    # A job leaves no others behind.
    _inductor.config.compile_threads = 1
    # The only folder on its command line that it doesn't quote; there may be a space in it.
    vars(cpp_extension)["TORCH_LIB_PATH"] = shlex.quote(str(Path(torch.__file__).parent / "lib"))


@contextmanager
def folder_for_compilers() -> Iterator[None]:
    """Have compilers keep temporary files in their current folder if they would find the job's unusable.

    GCC asks ``access``, which a user who may search any folder by a capability fails below one that is closed
    to others.
    """
    folder = tempfile.gettempdir()  # which Python keeps from now on
    if os.access(folder, os.W_OK):
        yield
        return
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = "."
    try:
        yield
    finally:
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before


def _options(program: ExportedProgram, of: Signature) -> dict[str, Any]:
    options: dict[str, Any] = {
        # Weights are constants: folded, and laid out for the kernels.
        "freezing": True,
        "aot_inductor.metadata": {FARM: of.model_dump_json(ensure_ascii=True)},
        # oneDNN's layout of weights is the building processor's.
        "cpp.weight_prepack": False,
    }
    if any(tensor.device.type == "cuda" for tensor in program.state_dict.values()):
        # The program has the layout that was measured to be the fastest; where torch 2.11 changes it, some
        # kernels read the output of a convolution in the other one.
        options["layout_optimization"] = False
    if hasattr(_inductor.config.cpp, "march"):
        options["cpp.march"] = compiler.INSTRUCTION_SET
    if hasattr(_inductor.config.aot_inductor, "precompile_headers"):
        # They would be kept in a folder of all jobs, and need the program openssl.
        options["aot_inductor.precompile_headers"] = False
    return options


def use_instruction_set() -> None:
    """Have inductor take it that the processor has the vectors of packages (``compiler.tools``), no wider.

    It would compile and run a program for each wider set that the processor has, half a minute of them, in
    each process that compiles or loads a package; ``vec_isa_ok`` alone spares it only AVX2's.
    """
    from torch._inductor import cpu_vec_isa

    known = cpu_vec_isa.supported_vec_isa_list
    cpu_vec_isa.supported_vec_isa_list = [one for one in known if str(one) == compiler.VECTORS]
    _inductor.config.cpp.simdlen = compiler.SIMD_BITS
    _inductor.config.cpp.vec_isa_ok = True


def choose_kernels(*, tf32: bool) -> None:
    """Set which kernels packages call: of fp32 products in TF32 or not, of convolutions the fastest.

    cuDNN times its kernels at the first run of each shape then; by default it guesses.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
