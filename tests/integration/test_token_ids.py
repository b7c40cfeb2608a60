"""Ids of tokens are checked against the model's tables before a framework meets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from farm.errors import InvalidData
from farm.stages import CalibrateParams, ExportParams, MeasureParams
from tests.stage_bench import Bench, save_npz
from workers.graphs import vocabularies

ROWS = 50


def texts(path: Path) -> Path:
    """Tokens and their kinds, each looked up in a table of its own, and a product."""
    random = np.random.default_rng(2)
    weights = {
        "words": random.normal(size=(ROWS, 32)),
        "kinds": random.normal(size=(2, 32)),
        "w": random.normal(size=(32, 16)) / 6,
    }
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["words", "wide"], ["a"]),
        helper.make_node("Gather", ["kinds", "kind"], ["b"], axis=0),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("ReduceMean", ["c", "axes"], ["d"], keepdims=0),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "texts",
        [value("ids", TensorProto.INT32, ["n", "t"]), value("kind", TensorProto.INT64, ["n", "t"])],
        [value("y", TensorProto.FLOAT, ["n", 16])],
        [
            *(numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()),
            numpy_helper.from_array(np.array([1]), "axes"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    return path


def data(path: Path, *, word: int = 0, kind: int = 0) -> Path:
    random = np.random.default_rng(3)
    ids = random.integers(0, ROWS, (64, 12)).astype(np.int32)
    kinds = random.integers(0, 2, (64, 12))
    ids[40, 5], kinds[41, 6] = word, kind
    return save_npz(path, ids=ids, kind=kinds)


PROFILES = [{name: {"min": (1, 12), "opt": (8, 12), "max": (64, 12)} for name in ("ids", "kind")}]


def test_tables_that_inputs_are_looked_up_in_are_found(tmp_path: Path) -> None:
    assert vocabularies.sizes(onnx.load(texts(tmp_path / "m.onnx"))) == {"ids": ROWS, "kind": 2}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"word": 50},
            "input 'ids' has the id 50, but the model's table for it has 50 rows, 0 to 49",
        ),
        ({"word": -51}, "input 'ids' has the id -51"),
        ({"kind": 2}, "input 'kind' has the id 2, but the model's table for it has 2 rows, 0 to 1"),
    ],
)
def test_ids_that_a_model_lacks_are_refused_by_input_value_and_size(
    bench: Bench, tmp_path: Path, wrong: dict[str, int], told: str
) -> None:
    source, samples = texts(tmp_path / "m.onnx"), data(tmp_path / "d.npz", **wrong)
    export = ExportParams(format="onnx", profiles=PROFILES)
    assert told in bench.fails(InvalidData, export, source=source, calibration=samples).detail
    measure = MeasureParams(precision="fp32", format="onnx", profiles=PROFILES)
    inputs = {"source": source, "typed": source, "evaluation": samples}
    assert told in bench.fails(InvalidData, measure, **inputs).detail


def test_several_inputs_of_ids_are_calibrated_with(bench: Bench, tmp_path: Path) -> None:
    source, samples = texts(tmp_path / "m.onnx"), data(tmp_path / "d.npz", word=-1, kind=1)
    exported = bench.run(
        ExportParams(format="onnx", profiles=PROFILES), source=source, calibration=samples
    )
    assert exported.facts["check"]["data"] == "calibration"
    made = bench.run(CalibrateParams(profiles=PROFILES), onnx=source, calibration=samples)
    assert made.facts["samples"] == 64
    measured = bench.run(
        MeasureParams(precision="int8", format="onnx", profiles=PROFILES),
        source=source,
        typed=made.outputs["typed"],
        evaluation=samples,
    )
    assert measured.facts["accuracy"]["cosine_mean"] > 0.99


def test_ids_of_a_program_are_refused_in_the_same_words(bench: Bench, tmp_path: Path) -> None:
    module = torch.nn.Sequential(
        torch.nn.Embedding(30, 8), torch.nn.Flatten(), torch.nn.Linear(32, 4)
    )
    program = torch.export.export(module.eval(), (torch.zeros(2, 4, dtype=torch.int64),))
    torch.export.save(program, tmp_path / "m.pt2")
    [name] = program.graph_signature.user_inputs
    samples = save_npz(tmp_path / "d.npz", **{str(name): np.full((8, 4), 30)})
    params = ExportParams(format="pt2")
    told = bench.fails(InvalidData, params, source=tmp_path / "m.pt2", calibration=samples).detail
    assert f"input {str(name)!r} has the id 30" in told
    assert "30 rows, 0 to 29" in told
