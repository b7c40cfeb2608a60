"""Every stage on models that are legal and odd: it succeeds, or says what is wrong and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from farm.errors import StageFailed, StageFault
from farm.specs.runtime import Target
from farm.stages import (
    BuildParams,
    CalibrateParams,
    CastParams,
    ExportParams,
    JobKind,
    MeasureParams,
    StageParams,
)
from tests.strange_models import MODELS
from workers.graphs import interface
from workers.inputs.profiles import resolve_profiles, shapes_at
from workers.inputs.samples import random_arrays
from workers.stages import base
from workers.stages.base import Stage, StageResult

KINDS: dict[type[StageParams], JobKind] = {
    ExportParams: JobKind.EXPORT,
    CastParams: JobKind.CAST,
    CalibrateParams: JobKind.CALIBRATE,
    BuildParams: JobKind.BUILD,
    MeasureParams: JobKind.MEASURE,
}
CPU = Target(runtime="onnxruntime", gpu="cpu")
ADA = Target(runtime="tensorrt-rtx", gpu="sm_89")


class Line:
    """A model's way through the stages, each of which must end well or with a hint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: list[StageFailed] = []
        self.runs = 0

    def run(self, params: StageParams, **inputs: Path) -> dict[str, Path]:
        """What a stage made; nothing when it failed."""
        self.runs += 1
        workdir = self.folder / str(self.runs)
        workdir.mkdir()
        stage = Stage(
            kind=KINDS[type(params)],
            params=params,
            inputs=inputs,
            workdir=workdir,
            progress=lambda _phase, _share: None,
        )
        try:
            made: StageResult = base.run(stage)
        except StageFailed as err:
            self.failures.append(err)
            return {}
        return dict(made.outputs)

    def build(self, target: Target, precision: str, **inputs: Path) -> dict[str, Path]:
        params = BuildParams(target=target, compute_capability=target.gpu, precision=precision)
        return self.run(params, **inputs)

    def check(self) -> None:
        for failure in self.failures:
            assert not isinstance(failure, StageFault), failure.detail
            assert failure.hint, f"no hint to: {failure.detail}"
            assert "retry" not in failure.hint
            assert str(self.folder) not in failure.detail, "it names a path of the worker's"


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def data_for(model: Path, path: Path) -> Path:
    inputs = interface.input_specs(onnx.load(str(model)))
    profile = resolve_profiles(inputs, (), {})[0]
    np.savez(path, **random_arrays(inputs, shapes_at(profile, "opt"), seed=1))
    return path


#: One of each kind; all of them take a minute or two.
QUICK = (
    "bf16",
    "strings",
    "constant_strings",
    "sequence_output",
    "optional_inside",
    "branch",
    "loop",
    "size_input",
    "empty_axis",
    "input_is_an_output",
    "sparse_weights",
    "nothing_but_a_constant",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else (pytest.mark.heavy,)) for n in MODELS],
)
def test_a_strange_model_becomes_an_engine_or_a_hint_says_why_not(name, tmp_path):
    line = Line(tmp_path)
    source = write(MODELS[name](), tmp_path / "source.onnx")
    exported = line.run(ExportParams(format="onnx"), source=source)
    if exported:
        go_on(line, source, exported["onnx"])
    line.check()


def go_on(line: Line, source: Path, plain: Path) -> None:
    built = line.build(CPU, "fp32", typed=plain)
    line.build(ADA, "fp32", typed=plain)
    if built:
        params = MeasureParams(precision="fp32", format="onnx", target=CPU)
        line.run(params, source=source, typed=plain, engine=built["engine"])
    line.run(CastParams(precision="int8-dynamic"), onnx=plain)
    cast = line.run(CastParams(precision="fp16"), onnx=plain)
    if cast:
        line.build(ADA, "fp16", typed=cast["typed"])
        measured = MeasureParams(precision="fp16", format="onnx")
        line.run(measured, source=source, typed=cast["typed"])
    data = data_for(plain, line.folder / "data.npz")
    params = CalibrateParams(precision="int8", method="max", batch_size=4)
    calibrated = line.run(params, onnx=plain, calibration=data)
    if calibrated:
        line.build(ADA, "int8", typed=calibrated["typed_half"])
        line.build(CPU, "int8", typed=calibrated["typed"], onnx=plain, calibration=data)


#: Of one input and one output, which may have any of ONNX's types.
OPERATORS = {
    "Identity": {},
    "Relu": {},
    "Neg": {},
    "Sqrt": {},
    "Not": {},
    "IsNaN": {},
    "Softmax": {},
    "ArgMax": {},
    "Shape": {},
    "Size": {},
    "NonZero": {},
    "Transpose": {},
    "Flatten": {},
    "Hardmax": {},
    "Det": {},
    "ReduceMax": {},
    "CumSum": {},
    "Cast": {"to": onnx.TensorProto.FLOAT},
    "BitwiseNot": {},
    "GlobalAveragePool": {},
    "Erf": {},
    "Unique": {},
    "StringNormalizer": {},
    "LpNormalization": {},
    "DepthToSpace": {"blocksize": 2},
}
TYPES = [number for number in onnx.TensorProto.DataType.values() if number]
SIZES = st.one_of(st.integers(0, 3), st.sampled_from(["batch", "n", ""]))
EXAMPLES = int(os.environ.get("FARM_TEST_STRANGE", "40"))


@settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == 40,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    operator=st.sampled_from(sorted(OPERATORS)),
    kinds=st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES)),
    is_kept=st.booleans(),
    shape=st.lists(SIZES, max_size=10),
    opset=st.integers(1, onnx.defs.onnx_opset_version() + 1),
)
def test_one_operator_of_any_type_rank_and_opset_never_ends_untyped(
    tmp_path_factory, operator, kinds, is_kept, shape, opset
):
    given_type, made_type = kinds[0], kinds[0] if is_kept else kinds[1]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], **OPERATORS[operator])],
        "one",
        [helper.make_tensor_value_info("x", given_type, shape)],
        [helper.make_tensor_value_info("y", made_type, shape if is_kept else None)],
    )
    imports = [helper.make_opsetid("", opset)]
    folder = tmp_path_factory.mktemp("one")
    source = write(helper.make_model(graph, opset_imports=imports), folder / "source.onnx")
    line = Line(folder)
    exported = line.run(ExportParams(format="onnx"), source=source)
    if exported:
        line.build(CPU, "fp32", typed=exported["onnx"])
        line.build(ADA, "fp32", typed=exported["onnx"])
        line.run(CastParams(precision="fp16"), onnx=exported["onnx"])
    line.check()
