"""A new precision and a new stage, added in the files that ARCHITECTURE.md names, and no others."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: File → what stands there, and what takes its place.
PRECISION = {
    "farm/specs/precision.py": [
        ("    @property\n", '    TOY = "toy"\n\n    @property\n'),
        ("] = {\n", '] = {\n    Precision.TOY: Traits(typed_by="cast", computes_in="fp32"),\n'),
    ],
    "farm/planning/policy.py": [
        (
            "] = {\n",
            '] = {\n    Precision.TOY: _Row(not_on_gpu="no GPU computes in toys; use fp16"),\n',
        )
    ],
    "workers/stages/cast.py": [
        (
            "#: Precision → function that makes its graph.",
            """def _rounded(_stage: Stage, given: onnx.ModelProto, _params: CastParams, path: Path) -> _Typed:
    for weight in given.graph.initializer:
        values = (onnx.numpy_helper.to_array(weight) * 4).round() / 4
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    files.save_model(given, path)
    return _Typed(model=given, low=1, total=1)


#: Precision → function that makes its graph.""",
        ),
        ("_Typed]] = {\n", "_Typed]] = {\n    Precision.TOY: _rounded,\n"),
    ],
}
STAGE = {
    "farm/stages.py": [
        ("    @classmethod\n", '    STRIP = "strip"\n\n    @classmethod\n'),
        ("StageParams = (\n", "class StripParams(Value):\n    pass\n\n\nStageParams = (\n"),
        ("    PruneParams\n", "    PruneParams\n    | StripParams\n"),
        (
            "Mapping[JobKind, StageSpec] = {\n",
            """Mapping[JobKind, StageSpec] = {
    JobKind.STRIP: StageSpec(
        params=StripParams,
        facts=Facts,
        version=1,
        tools=("onnx",),
        takes=(Role.ONNX,),
        makes=(Role.ONNX,),
    ),
""",
        ),
    ],
    "farm/planning/plan.py": [
        ("    PruneParams,\n)", "    PruneParams,\n    StripParams,\n)"),
        (
            "    def _export(self)",
            """    def _export(self) -> PlannedJob:
        exported = self._exported().output(Role.ONNX)
        return self._jobs.add(StripParams(), {Role.ONNX: exported}, given=())

    def _exported(self)""",
        ),
    ],
    "workers/stages/strip.py": [
        (
            "",
            '''"""Strip: the documentation out of a graph."""

import onnx

from farm.specs.roles import Role
from workers.stages.base import Stage, StageResult


def run(stage: Stage) -> StageResult:
    model = onnx.load(str(stage.inputs[Role.ONNX]))
    for node in model.graph.node:
        node.ClearField("doc_string")
    stripped = stage.workdir / "stripped.onnx"
    onnx.save(model, str(stripped))
    return StageResult(outputs={Role.ONNX: stripped})
''',
        )
    ],
}
#: Builds a product for CPUs in a precision, and says which jobs that took and what the engine gives.
BUILD = """
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.zoo import runner

precision, folder = sys.argv[1], Path(sys.argv[2])
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])
weights = numpy_helper.from_array(np.array([[0.3, 1], [1, 2.6]], np.float32), "w")
node = helper.make_node("MatMul", ["x", "w"], ["y"], doc_string="words")
graph = helper.make_graph([node], "g", [value("x")], [value("y")], [weights])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
onnx.save(model, str(folder / "m.onnx"))
samples = {"x": np.eye(2, dtype=np.float32)}
source = runner.Source(name="m", path=folder / "m.onnx", format="onnx", samples=samples)
(one,) = runner.build(source, precisions=[precision], gpus=["cpu"], folder=folder)
assert one.error is None, one.error
print("jobs", *one.results)
engine = ort.InferenceSession(str(one.build.outputs["engine"]))
print("gives", *engine.run(None, samples)[0].ravel().astype(float).round(3).tolist())
"""


def tree(folder: Path, changes: dict[str, list[tuple[str, str]]]) -> Path:
    """The farm's code with these changes."""
    for name in ("farm", "workers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").symlink_to(ROOT / "tests")
    for file, edits in changes.items():
        path = folder / file
        text = path.read_text() if path.exists() else ""
        for old, new in edits:
            assert text.count(old) == 1 or not old, (file, old)
            text = text.replace(old, new) if old else new
        path.write_text(text)
    return folder


def built(folder: Path, precision: str) -> list[str]:
    (folder / "build").mkdir()
    command = [sys.executable, "-c", BUILD, precision, str(folder / "build")]
    run = subprocess.run(
        command, env={"PYTHONPATH": str(folder)}, cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.splitlines()


def files_for(what: str) -> set[str]:
    """The files to touch, by the table of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    [row] = re.findall(rf"^\| {what} \|.*$", text, re.MULTILINE)
    return set(re.findall(r"`((?:farm|workers)/[\w/]+\.py)`", row))


def test_a_new_precision_takes_three_files(tmp_path: Path) -> None:
    assert len(PRECISION) <= 3
    assert set(PRECISION) == files_for("a precision")
    printed = built(tree(tmp_path, PRECISION), "toy")
    assert "gives 0.25 1.0 1.0 2.5" in printed


def test_a_new_stage_takes_three_files(tmp_path: Path) -> None:
    assert len(STAGE) <= 3
    named = {one.replace("NAME", "strip") for one in files_for("a stage")}
    assert named == set(STAGE)
    printed = built(tree(tmp_path, STAGE), "fp32")
    assert "strip" in printed[-2].split()
    assert printed[-1] == "gives 0.3 1.0 1.0 2.6"


@pytest.mark.parametrize("what", ["a precision", "a stage", "a store", "a metric of engines"])
def test_the_files_to_touch_are_there(what: str) -> None:
    for file in files_for(what):
        assert "NAME" in file or (ROOT / file).is_file()
    assert 1 <= len(files_for(what)) <= 3
