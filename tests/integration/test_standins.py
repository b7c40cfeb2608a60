"""Random data within what a model accepts, and the user's own where there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.errors import EngineBuildFailed, InvalidModel
from farm.specs.precision import Precision
from farm.specs.shapes import ShapeRange, TensorSpec, ValueRange
from farm.stages import ExportParams, JobKind
from tests.stage_bench import Ran
from tests.zoo import runner
from workers.backends.ort.cpu import OrtModel
from workers.graphs import interface
from workers.graphs.bytes_first import cast_first
from workers.graphs.check import check_model
from workers.inputs.profiles import resolve_profiles
from workers.inputs.standins import KINDS, random_arrays, tried
from workers.stages import export
from workers.stages.base import Stage

RANDOM = np.random.default_rng(17)
FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8


def floats(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * 0.2).astype(np.float32)


def saved(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str]]],
    outputs: Mapping[str, tuple[int, list[int | str]]],
    tensors: Mapping[str, np.ndarray],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    imports = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), str(path))
    return path


def exported(path: Path, **inputs: Path) -> Ran:
    workdir = path.parent / f"work-{len(list(path.parent.iterdir()))}"
    workdir.mkdir()
    stage = Stage(
        kind=JobKind.EXPORT,
        params=ExportParams.model_validate({"format": "onnx"}),
        inputs={"source": path} | inputs,
        workdir=workdir,
        progress=lambda *_: None,
    )
    made = export.run(stage)
    return Ran(outputs=made.outputs, facts=made.facts.model_dump(mode="json"))


def logarithm(path: Path) -> Path:
    nodes = [
        helper.make_node("Log", ["power"], ["l"]),
        helper.make_node("MatMul", ["l", "w"], ["y"]),
    ]
    return saved(
        path, nodes, {"power": (FLOAT, ["n", 16])}, {"y": (FLOAT, ["n", 4])}, {"w": floats(16, 4)}
    )


def test_what_must_be_positive_is_drawn_so(tmp_path: Path) -> None:
    path = logarithm(tmp_path / "log.onnx")
    check = exported(path).facts["check"]
    assert check["data"] == "random"
    assert check["random"] == ["floats in 0…1, integers 0 or 1"]
    [profile] = resolve_profiles(interface.input_specs(onnx.load(str(path))), ())
    specs = interface.input_specs(onnx.load(str(path)))
    arrays, kind = tried(OrtModel(path), specs, {"power": (4, 16)}, seed=0, profile=profile)
    assert kind == KINDS[1]
    assert np.isfinite(OrtModel(path).run(arrays)["y"]).all()


def test_the_users_samples_are_what_an_export_is_checked_on(tmp_path: Path) -> None:
    path, data = logarithm(tmp_path / "log.onnx"), tmp_path / "data.npz"
    np.savez(data, power=np.exp(floats(5, 16)))
    for role in ("calibration", "evaluation"):
        check = exported(path, **{role: data}).facts["check"]
        assert check == {
            "reason": "the source is ONNX and was taken as it is",
            "data": role,
            "batches": [2, 8],
        }


LENGTHS = [
    TensorSpec(name="mask_of_all", dtype="float32", shape=("batch",)),
    TensorSpec(name="speech", dtype="float32", shape=("batch", 20, 16)),
    TensorSpec(name="text", dtype="int64", shape=("batch", 9)),
    TensorSpec(name="speech_lengths", dtype="int64", shape=("batch",)),
    TensorSpec(name="text_len", dtype="int32", shape=("batch", 1)),
    TensorSpec(name="attention_mask", dtype="bool", shape=("batch", 9)),
]


def test_lengths_are_within_the_axis_that_they_count() -> None:
    shapes = {
        "mask_of_all": (64,),
        "speech": (64, 20, 16),
        "text": (64, 9),
        "speech_lengths": (64,),
        "text_len": (64, 1),
        "attention_mask": (64, 9),
    }
    arrays = random_arrays(LENGTHS, shapes, seed=0)
    speech, text = arrays["speech_lengths"], arrays["text_len"]
    assert (speech.min(), speech.max()) == (10, 20)
    assert (text.min(), text.max()) == (5, 9)
    assert set(arrays["text"].flat) == {0, 1}
    assert arrays["attention_mask"].all()


def gathered(path: Path) -> Path:
    """Takes a rate from 8000 to 8003."""
    nodes = [
        helper.make_node("Sub", ["sr", "lowest"], ["place"]),
        helper.make_node("Gather", ["scales", "place"], ["scale"]),
        helper.make_node("Mul", ["x", "scale"], ["y"]),
    ]
    return saved(
        path,
        nodes,
        {"x": (FLOAT, ["n", 4]), "sr": (INT64, [])},
        {"y": (FLOAT, ["n", 4])},
        {"lowest": np.array(8000), "scales": np.ones(4, np.float32)},
    )


def test_a_model_that_runs_on_no_random_integers_says_which_input_to_fix(tmp_path: Path) -> None:
    path = gathered(tmp_path / "rate.onnx")
    with pytest.raises(InvalidModel, match="random values were used, 0 and 1 for 'sr'") as caught:
        exported(path)
    assert "--fix sr=VALUE" in str(caught.value.hint)
    data = tmp_path / "data.npz"
    np.savez(data, x=floats(4, 4), sr=np.array(8001))
    assert exported(path, calibration=data).facts["check"]["data"] == "calibration"


def best(path: Path) -> Path:
    """The k best of ten scores."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["s"]),
        helper.make_node("TopK", ["s", "k"], ["values", "indices"]),
    ]
    return saved(
        path,
        nodes,
        {"x": (FLOAT, ["n", 16]), "k": (INT64, [1])},
        {"values": (FLOAT, ["n", "kk"]), "indices": (INT64, ["n", "kk"])},
        {"w": floats(16, 10)},
    )


def built(path: Path, folder: Path, samples: Mapping[str, np.ndarray], **request: Any) -> Any:
    source = runner.Source(
        name="m",
        path=path,
        format="onnx",
        samples=samples,
        profiles=request.pop("profiles", ()),
    )
    folder.mkdir(exist_ok=True)
    [one] = runner.build(
        source, precisions=[Precision.FP32], gpus=["sm_89"], folder=folder, **request
    )
    return one


def test_an_input_that_is_a_size_has_the_values_of_the_samples(tmp_path: Path) -> None:
    path = best(tmp_path / "m.onnx")
    one = built(path, tmp_path / "made", {"x": floats(32, 16), "k": np.array([3])})
    assert one.error is None, one.error
    assert one.facts["profiles"][0]["k"] == {
        "min": [1],
        "opt": [1],
        "max": [1],
        "values": {"min": [3], "opt": [3], "max": [3]},
    }


def test_an_input_that_is_a_size_has_a_range_of_values_in_the_profile(tmp_path: Path) -> None:
    path = best(tmp_path / "m.onnx")
    values = {"min": [1], "opt": [5], "max": [8]}
    profile = {"k": {"min": [1], "opt": [1], "max": [1], "values": values}}
    one = built(path, tmp_path / "made", {}, profiles=[profile], calibration=None)
    assert one.error is None, one.error
    assert one.facts["profiles"][0]["k"]["values"] == values
    assert one.accuracy.cosine_mean > 0.999


def test_an_input_that_is_a_size_is_fixed(tmp_path: Path) -> None:
    path = best(tmp_path / "m.onnx")
    one = built(path, tmp_path / "made", {"x": floats(32, 16)}, fixed_inputs={"k": 4})
    assert one.error is None, one.error
    assert [spec["name"] for spec in one.facts["inputs"]] == ["x"]
    assert one.facts["outputs"][0]["shape"] == ["n", 4]


def test_an_input_that_is_a_size_of_unknown_values_is_refused_by_name(tmp_path: Path) -> None:
    one = built(best(tmp_path / "m.onnx"), tmp_path / "made", {}, calibration=None)
    assert isinstance(one.error, EngineBuildFailed)
    assert "input 'k' is a shape input" in one.error.detail
    assert "--fix k=VALUE" in str(one.error.hint)


def test_a_profile_without_values_doesnt_say_so() -> None:
    sizes = ShapeRange(min=(1,), opt=(2,), max=(3,))
    assert sizes.model_dump() == {"min": (1,), "opt": (2,), "max": (3,)}
    assert ShapeRange.model_validate(sizes.model_dump()) == sizes
    with pytest.raises(ValueError, match="min 5 ≤ opt 3"):
        ValueRange(min=(5,), opt=(3,), max=(8,))


def camera(path: Path, *, cast_in_front: bool) -> Path:
    """A classifier of images as cameras give them: bytes, channels last."""
    start = [
        helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["f"], to=FLOAT),
    ]
    if cast_in_front:
        start = [
            helper.make_node("Cast", ["image"], ["t"], to=FLOAT),
            helper.make_node("Transpose", ["t"], ["f"], perm=[0, 3, 1, 2]),
        ]
    nodes = [
        *start,
        helper.make_node("Div", ["f", "scale"], ["d"]),
        helper.make_node("Conv", ["d", "w"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    return saved(
        path,
        nodes,
        {"image": (UINT8, ["n", 16, 16, 3])},
        {"y": (FLOAT, ["n", 16])},
        {"scale": np.float32(58.4), "w": floats(16, 3, 3, 3)},
    )


def test_bytes_are_cast_before_they_are_moved_and_the_outputs_stay(tmp_path: Path) -> None:
    path = camera(tmp_path / "m.onnx", cast_in_front=False)
    model = onnx.load(str(path))
    image = RANDOM.integers(0, 256, (2, 16, 16, 3), np.uint8)
    expected = OrtModel(path).run({"image": image})["y"]
    assert cast_first(model) == ["image"]
    assert [node.op_type for node in model.graph.node][:3] == ["Cast", "Transpose", "Cast"]
    check_model(model)
    made = OrtModel(model.SerializeToString()).run({"image": image})["y"]
    np.testing.assert_array_equal(made, expected)
    assert cast_first(model) == []


@pytest.mark.parametrize("cast_in_front", [True, False])
def test_images_of_bytes_are_built_from_samples_of_bytes(
    cast_in_front: bool, tmp_path: Path
) -> None:
    path = camera(tmp_path / "m.onnx", cast_in_front=cast_in_front)
    source = runner.Source(
        name="camera",
        path=path,
        format="onnx",
        samples={"image": RANDOM.integers(0, 256, (64, 16, 16, 3), np.uint8)},
    )
    for one in runner.build(
        source, precisions=[Precision.FP16, Precision.INT8], gpus=["sm_89"], folder=tmp_path
    ):
        assert one.error is None, one.error
        assert one.accuracy.cosine_mean > 0.99


def test_a_mask_of_stand_in_inputs_hides_nothing() -> None:
    specs = [TensorSpec(name=name, dtype="int64", shape=(4, 8)) for name in ("ids", "pad_mask")]
    arrays = random_arrays(specs, {"ids": (4, 8), "pad_mask": (4, 8)}, seed=0)
    assert set(arrays["ids"].ravel()) == {0, 1}
    assert set(arrays["pad_mask"].ravel()) == {1}
