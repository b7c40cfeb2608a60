"""Data are refused before the upload with what the job would say, and only where the job would."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.client import data
from farm.errors import DataRefused, InvalidData
from farm.formats import array_files, onnx_interface
from farm.specs.samples import LABEL
from farm.specs.shapes import TensorSpec
from workers.graphs.intake import described
from workers.graphs.interface import input_specs
from workers.inputs.batch import Batch
from workers.inputs.profiles import resolve_profiles
from workers.inputs.samples import check_labels, check_samples, read_samples

IMAGE = ("image", TensorProto.FLOAT, ["batch", 3, "height"])
IDS = ("ids", TensorProto.INT64, ["N", 4])
MASK = ("mask", TensorProto.INT64, ["N", 4])
PROFILE = {"image": {"min": [1, 3, 8], "opt": [2, 3, 16], "max": [4, 3, 32]}}


def saved(path, *inputs, initializers=()):
    values = [helper.make_tensor_value_info(*one) for one in inputs]
    nodes = [helper.make_node("Identity", [inputs[0][0]], ["out"])]
    out = helper.make_tensor_value_info("out", inputs[0][1], None)
    graph = helper.make_graph(nodes, "net", values, [out], initializer=list(initializers))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), path)
    return path


def by_client(model, path, profiles=(), fixed=()):
    inputs = onnx_interface.inputs(model)
    assert inputs is not None
    data.check(path, inputs, profiles=profiles, fixed=fixed)


def by_job(model, path, profiles=(), fixed=None):
    inputs = [
        spec for spec in input_specs(described(onnx.load(model))) if spec.name not in (fixed or {})
    ]
    [profile] = resolve_profiles(
        inputs, [{n: data.ShapeRange.model_validate(s) for n, s in p.items()} for p in profiles]
    )
    arrays = read_samples(path, fixed)
    samples = check_samples(arrays, inputs, profile)
    check_labels(arrays, Batch.of(inputs, profile).count(samples))
    return samples


def zeros(shape, dtype="float32"):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("inputs", "arrays", "told"),
    [
        ([IMAGE], {"images": zeros((8, 3, 16))}, "the data has 'images', but"),
        ([IMAGE], {}, "the data has nothing, but"),
        ([IMAGE, IDS], {"arr_0": zeros((8, 3, 16))}, "the data has 'arr_0', but"),
        ([IMAGE], {"image": zeros((3, 16))}, "has shape [3, 16], but the model takes ['batch', 3"),
        ([IMAGE], {"image": zeros((8, 3, 16), "uint8")}, "is uint8, but the model takes float32"),
        ([IMAGE], {"image": zeros((8, 3, 16), "float64")}, "is float64, but the model takes"),
        ([IMAGE], {"image": zeros((8, 1, 16))}, "axis 1 of the data for input 'image' is 1, but"),
        ([IMAGE], {"image": zeros((8, 3, 64))}, "axis 2 of the data for input 'image' is 64, but"),
        ([IMAGE], {"image": zeros((0, 3, 16))}, "input 'image' has no samples"),
        (
            [IDS, MASK],
            {"ids": zeros((8, 4), "int64"), "mask": zeros((7, 4), "int64")},
            "different numbers of samples: {'ids': 8, 'mask': 7}",
        ),
        ([IMAGE], {"image": zeros((8, 3, 16)), LABEL: zeros(7, "int64")}, "'label' is int64[7]"),
        ([IMAGE], {"image": zeros((8, 3, 16)), LABEL: zeros(8)}, "'label' is float32[8]"),
        ([IMAGE], {"image": np.array([{"a": 1}], object)}, "Object arrays cannot be loaded"),
    ],
)
def test_what_the_job_would_refuse_is_refused_in_its_words(tmp_path, inputs, arrays, told):
    model = saved(tmp_path / "m.onnx", *inputs)
    np.savez(tmp_path / "data.npz", **arrays)
    profiles = [PROFILE] if inputs[0] == IMAGE else []
    with pytest.raises(DataRefused) as here:
        by_client(model, tmp_path / "data.npz", profiles)
    assert told in here.value.detail
    if IDS not in inputs or IMAGE not in inputs:
        with pytest.raises(InvalidData) as there:
            by_job(model, tmp_path / "data.npz", profiles)
        assert (here.value.detail, here.value.hint) == (there.value.detail, there.value.hint)


@pytest.mark.parametrize(
    ("inputs", "arrays", "fixed"),
    [
        ([IMAGE], {"image": zeros((9, 3, 16))}, {}),
        ([IMAGE], {"arr_0": zeros((9, 3, 16))}, {}),
        ([IMAGE], {"arr_0": zeros((9, 3, 16)), LABEL: zeros(9, "int64")}, {}),
        ([IMAGE, ("sr", TensorProto.INT64, [])], {"image": zeros((9, 3, 16))}, {"sr": 0}),
        (
            [IMAGE, ("sr", TensorProto.INT64, [])],
            {"image": zeros((9, 3, 16)), "sr": zeros((), "int64")},
            {"sr": 0},
        ),
        ([("x", TensorProto.FLOAT, [4, 3])], {"x": zeros((100, 3))}, {}),
        ([("x", TensorProto.FLOAT, [None, 3])], {"x": zeros((100, 3))}, {}),
        ([("x", TensorProto.BFLOAT16, ["N", 3])], {"x": zeros((100, 3))}, {}),
        (
            [("x", TensorProto.FLOAT, [10, "batch", 4]), ("h", TensorProto.FLOAT, [1, "batch", 6])],
            {"x": zeros((10, 50, 4)), "h": zeros((1, 50, 6))},
            {},
        ),
        (
            [("x", TensorProto.FLOAT, ["N", 4]), ("table", TensorProto.FLOAT, [7])],
            {"x": zeros((50, 4)), "table": zeros(7)},
            {},
        ),
    ],
)
def test_what_the_job_takes_is_let_through(tmp_path, inputs, arrays, fixed):
    model = saved(tmp_path / "m.onnx", *inputs)
    np.savez(tmp_path / "data.npz", **arrays)
    profiles = [PROFILE] if inputs[0] == IMAGE else []
    by_client(model, tmp_path / "data.npz", profiles, fixed)
    taken = by_job(model, tmp_path / "data.npz", profiles, fixed)
    assert set(taken) == {name for name, _, _ in inputs} - fixed.keys()


def test_one_array_alone_is_the_only_inputs(tmp_path):
    model = saved(tmp_path / "m.onnx", IMAGE)
    np.save(tmp_path / "data.npy", zeros((9, 3, 16)) + 5)
    by_client(model, tmp_path / "data.npy", [PROFILE])
    assert by_job(model, tmp_path / "data.npy", [PROFILE])["image"].max() == 5


def test_the_inputs_are_those_that_the_export_finds(tmp_path):
    weight = numpy_helper.from_array(zeros((3, 3)), "weight")
    inputs = (
        ("image", TensorProto.FLOAT16, ["batch", 3, None, -1]),
        ("weight", TensorProto.FLOAT, [3, 3]),
        ("scalar", TensorProto.BOOL, []),
        ("none", TensorProto.INT64, [0]),
    )
    model = saved(tmp_path / "m.onnx", *inputs, initializers=[weight])
    found = onnx_interface.inputs(model)
    assert found == input_specs(described(onnx.load(model)))
    assert found[0] == TensorSpec(
        name="image", dtype="float16", shape=("batch", 3, "image_2", "image_3")
    )
    assert [spec.name for spec in found] == ["image", "scalar", "none"]


def test_inputs_that_cannot_be_told_are_left_to_the_job(tmp_path):
    path = tmp_path / "m.onnx"
    unranked = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph([], "net", [unranked], [])
    onnx.save(helper.make_model(graph), path)
    assert onnx_interface.inputs(path) is None
    whole = saved(tmp_path / "whole.onnx", IMAGE).read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        onnx_interface.inputs(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_heads_are_numpys(tmp_path, save):
    dtypes = "bool int8 uint16 int32 int64 float16 float32 float64 complex64".split()
    arrays = {dtype: zeros((2, 0, 3), dtype) for dtype in dtypes}
    arrays["scalar"] = np.array(5)
    arrays["fortran"] = np.asfortranarray(zeros((2, 5)))
    arrays["big"] = zeros((2,), ">f4")
    save(tmp_path / "a.npz", **arrays)
    found = array_files.heads(tmp_path / "a.npz")
    assert found == {name: (one.dtype.name, one.shape) for name, one in arrays.items()}
    assert {name: array_files.bytes_of(head) for name, head in found.items()} == {
        name: one.nbytes for name, one in arrays.items()
    }


def test_heads_of_safetensors_are_numpys(tmp_path):
    from safetensors.numpy import save_file

    arrays = {"ids": zeros((2, 3), "int64"), "mask": zeros((2, 3), "bool"), "x": zeros((2, 0))}
    save_file(arrays, tmp_path / "a.safetensors")
    found = array_files.heads(tmp_path / "a.safetensors")
    assert found == {name: (one.dtype.name, one.shape) for name, one in arrays.items()}
