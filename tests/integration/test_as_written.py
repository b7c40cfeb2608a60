"""What runtimes load isn't refused for how it was written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.client import sources as client_sources
from farm.errors import InvalidRequest
from farm.formats import sources
from farm.formats.onnx_files import leads_out, location
from farm.formats.packs import Pack
from farm.specs.precision import Precision
from farm.specs.source import SourceFormat
from farm.stages import ExportParams, JobKind
from tests.zoo import runner
from workers.backends.ort.cpu import OrtModel
from workers.graphs import check, interface
from workers.graphs.intake import described
from workers.stages import export
from workers.stages.base import Stage

RANDOM = np.random.default_rng(13)
FLOAT = TensorProto.FLOAT


def floats(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * 0.2).astype(np.float32)


def info(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tensors: Mapping[str, np.ndarray],
    inner: list[onnx.ValueInfoProto] | None = None,
) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights, value_info=inner or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def convolved(batch: int | str, stale_output: int | str | None = None) -> onnx.ModelProto:
    """Its batch was edited on the input alone: inside it is 1."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "k"], ["y"], transB=1),
    ]
    inner = [info("a", [1, 16, 8, 8]), info("r", [1, 16, 8, 8]), info("f", [1, 16])]
    output = [info("y", [stale_output or batch, 10])]
    tensors = {"w": floats(16, 3, 3, 3), "k": floats(10, 16)}
    return model_of(nodes, [info("x", [batch, 3, 8, 8])], output, tensors, inner)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        pytest.param(convolved("n"), "n", id="dynamic"),
        pytest.param(convolved("n", stale_output=1), "n", id="with-its-output"),
        pytest.param(convolved(8), 8, id="eight"),
        pytest.param(convolved(8, stale_output=1), 8, id="eight-with-its-output"),
    ],
)
def test_stale_shapes_are_dropped(model: onnx.ModelProto, batch: int | str) -> None:
    fresh = described(model)
    check.check_model(fresh)
    assert [spec.shape for spec in interface.output_specs(fresh)] == [(batch, 10)]
    assert not fresh.graph.value_info


def test_shapes_that_are_right_stay() -> None:
    model = convolved(1)
    assert described(model) is model


def test_a_model_with_stale_shapes_is_built_as_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(convolved("n", stale_output=1), str(path))
    source = runner.Source(name="m", path=path, format="onnx", samples={"x": floats(32, 3, 8, 8)})
    for one in runner.build(
        source, precisions=[Precision.FP16, Precision.INT8], gpus=["sm_89"], folder=tmp_path
    ):
        assert one.error is None, one.error
        assert one.facts["outputs"][0]["shape"] == ["n", 10]
        assert one.accuracy.cosine_mean > 0.99


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("x.data", "x.data"),
        ("./x.data", "x.data"),
        (".\\weights\\x.bin", "weights/x.bin"),
        ("a/../x", "x"),
        ("weights//x", "weights/x"),
    ],
)
def test_a_location_is_the_same_however_it_is_written(written: str, meant: str) -> None:
    assert location(written) == meant
    assert not leads_out(location(written))


@pytest.mark.parametrize(
    "written", ["../x", "/etc/passwd", "..\\x", "a/../../x", "C:\\x", "\\\\host\\x", ".", ""]
)
def test_a_location_that_leads_out_is_seen(written: str) -> None:
    assert leads_out(location(written))


def products() -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "layer.0"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "head weight"], ["y"]),
    ]
    tensors = {"layer.0": floats(64, 64), "head weight": floats(64, 32)}
    return model_of(nodes, [info("x", ["n", 64])], [info("y", ["n", 32])], tensors)


def scattered(folder: Path, model: onnx.ModelProto, places: Mapping[str, tuple[str, str]]) -> Path:
    """Save it with a file for each tensor: name → how the model writes its place, and where it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        written, place = places[tensor.name]
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(tensor.raw_data)
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", written), ("offset", "0"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(copy.SerializeToString())
    return path


def many(folder: Path, model: onnx.ModelProto) -> Path:
    places = {
        "layer.0": ("weights/layer.0", "weights/layer.0"),
        "head weight": ("./head weight.data", "head weight.data"),
    }
    return scattered(folder, model, places)


def windows(folder: Path, model: onnx.ModelProto) -> Path:
    places = {
        "layer.0": ("weights\\t0.bin", "weights/t0.bin"),
        "head weight": (".\\t1.bin", "t1.bin"),
    }
    return scattered(folder, model, places)


def called_onnx(folder: Path, model: onnx.ModelProto) -> Path:
    places = {
        "layer.0": ("model.onnx", "model.onnx"),
        "head weight": ("head.onnx", "head.onnx"),
    }
    return scattered(folder, model, places)


def hub(folder: Path, model: onnx.ModelProto) -> Path:
    """As a hub's client keeps it: names that are links into a folder of blobs."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "1" / "onnx"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    temporary = folder / "temporary"
    temporary.mkdir()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(
        copy,
        str(temporary / "model.onnx"),
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
    )
    for number, name in enumerate(("model.onnx", "model.onnx_data")):
        blob = blobs / f"{number:064x}"
        (temporary / name).rename(blob)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot / "model.onnx"


@pytest.mark.parametrize("save", [many, windows, called_onnx, hub])
@pytest.mark.parametrize("by_folder", [False, True], ids=["file", "folder"])
def test_a_model_of_several_files_is_packed_checked_and_read(
    save: Callable[[Path, onnx.ModelProto], Path], by_folder: bool, tmp_path: Path
) -> None:
    model = products()
    made = tmp_path / "made"
    made.mkdir()
    path = save(made, model)
    found = client_sources.find(path.parent if by_folder else path)
    assert isinstance(found.content, Pack)
    pack = tmp_path / "pack.tar"
    found.content.write(pack)
    sources.check(pack, SourceFormat.ONNX)
    workdir = tmp_path / "work"
    workdir.mkdir()
    stage = Stage(
        kind=JobKind.EXPORT,
        params=ExportParams.model_validate({"format": "onnx"}),
        inputs={"source": pack},
        workdir=workdir,
        progress=lambda *_: None,
    )
    result = OrtModel(export.run(stage).outputs["onnx"])
    x = floats(3, 64)
    expected = OrtModel(model.SerializeToString()).run({"x": x})["y"]
    np.testing.assert_allclose(result.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_pack_of_two_models_is_refused(tmp_path: Path) -> None:
    onnx.save(products(), str(tmp_path / "a.onnx"))
    pack = tmp_path / "pack.tar"
    file = tmp_path / "a.onnx"
    Pack(name="two", files={"a.onnx": file, "b.onnx": file}).write(pack)
    with pytest.raises(InvalidRequest, match=r"there is a\.onnx, b\.onnx"):
        sources.check(pack, SourceFormat.ONNX)


def test_weights_that_are_elsewhere_are_named_before_anything_is_sent(tmp_path: Path) -> None:
    places = {"layer.0": ("../w", "../w"), "head weight": ("h", "h")}
    (tmp_path / "model").mkdir()
    path = scattered(tmp_path / "model", products(), places)
    with pytest.raises(InvalidRequest, match="which isn't beside it"):
        client_sources.find(path)
