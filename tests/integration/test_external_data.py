"""ONNX with weights in other files: packed, checked, and passed from stage to stage."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from farm.client.sources import find
from farm.errors import InvalidModel, InvalidRequest
from farm.formats import packs, sources
from farm.formats.onnx_files import external_files
from farm.formats.packs import MalformedPack, Pack
from farm.formats.protobuf import MalformedMessage
from farm.specs.precision import Precision
from farm.specs.source import SourceFormat
from farm.stages import JobKind
from tests.zoo import runner
from workers.graphs import files

SIZE = 64


def save(path: Path, *, opset: int = 20, data: str = "m.data", threshold: int = 0) -> Path:
    """Three products [n,64], their weights in a file of their own, and a branch with one more."""
    random = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(
            (random.standard_normal((SIZE, SIZE)) * 0.1).astype(np.float32), name
        )
        for name in ("a", "b", "c")
    ]
    shape = numpy_helper.from_array(np.array([-1, SIZE]), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("Relu", ["xa"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["s"]),
        helper.make_node("MatMul", ["s", "b"], ["sb"]),
        helper.make_node("MatMul", ["sb", "c"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "m",
        [value("x", TensorProto.FLOAT, ["n", SIZE])],
        [value("y", TensorProto.FLOAT, ["n", SIZE])],
        [*tensors, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, str(path), save_as_external_data=True, location=data, size_threshold=threshold)
    return path


def packed(path: Path) -> Path:
    content = find(path).content
    assert isinstance(content, Pack)
    target = path.with_suffix(".tar")
    content.write(target)
    assert target.stat().st_size == content.total_bytes
    return target


def tar(path: Path, **entries: bytes | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in entries.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.heavy
@pytest.mark.parametrize("opset", [13, 20])
def test_every_stage_passes_weights_in_other_files_on(
    opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if one message couldn't hold these weights: what is made is packed again.
    monkeypatch.setattr(files, "MAX_PROTO_BYTES", 3 * SIZE * SIZE)
    source = runner.Source(
        name="m",
        path=packed(save(tmp_path / "m.onnx", opset=opset)),
        format="onnx",
        samples={"x": np.random.default_rng(1).standard_normal((16, SIZE)).astype(np.float32)},
    )
    precisions = [Precision.FP16, Precision.INT8] if opset == 20 else [Precision.FP32]
    found = list(
        runner.build(source, precisions=precisions, gpus=["sm_89", "cpu"], folder=tmp_path)
    )
    for one in found:
        assert one.error is None, one.error
        assert one.accuracy.cosine_mean > 0.99
    made = [path for path in tmp_path.glob("*/*.onnx") if packs.is_pack(path)]
    names = {path.name for path in made}
    assert {"typed.onnx", "engine.onnx"} <= names if opset == 20 else {"model.onnx"} <= names


def test_a_small_model_with_data_becomes_one_file(tmp_path: Path) -> None:
    path = packed(save(tmp_path / "m.onnx"))
    samples = {"x": np.zeros((16, SIZE), np.float32)}
    source = runner.Source(name="m", path=path, format="onnx", samples=samples)
    [one] = runner.build(source, precisions=[Precision.FP32], gpus=["cpu"], folder=tmp_path)
    assert one.error is None, one.error
    assert not any(packs.is_pack(made) for made in tmp_path.glob("*/*.onnx"))


def test_a_model_above_the_limit_leaves_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_PROTO_BYTES", SIZE * SIZE)
    path = packed(save(tmp_path / "m.onnx"))
    source = runner.Source(name="m", path=path, format="onnx", samples={})
    made = runner.stage(source, JobKind.EXPORT, tmp_path).outputs["onnx"]
    assert made.read_bytes() == path.read_bytes()


def test_equal_files_make_equal_packs_whatever_they_are_called(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = save(tmp_path / name / f"{name}.onnx")
        os.utime(path, (len(digests), 0))
        content = find(tmp_path / name).content  # the folder stands for the model in it
        assert isinstance(content, Pack)
        digests.append(b"".join(content.chunks()))
    assert digests[0] == digests[1]


def test_a_model_in_one_file_is_handed_in_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", threshold=1 << 30)
    assert find(path)[:3] == (SourceFormat.ONNX, path, path)
    assert find(packed(save(tmp_path / "n.onnx"))).format is SourceFormat.ONNX


def test_a_missing_data_file_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    with pytest.raises(InvalidRequest, match=r"m\.data") as caught:
        find(path)
    assert str(tmp_path / "m.data") in (caught.value.hint or "")
    with pytest.raises(InvalidRequest, match=r"m\.data"):
        sources.check(path, SourceFormat.ONNX)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/../../secret"])
def test_weights_outside_the_models_folder_are_refused(location: str, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = location
    path.write_bytes(model.SerializeToString())
    (tmp_path.parent / "secret").write_bytes(bytes(1 << 16))
    with pytest.raises(InvalidRequest):
        find(path)
    for handed_in in (path, tar(tmp_path / "m.tar", **{"m.onnx": path.read_bytes()})):
        with pytest.raises(InvalidRequest):
            sources.check(handed_in, SourceFormat.ONNX)
        with pytest.raises(InvalidModel) as caught:
            files.read_model(handed_in, tmp_path)
        assert caught.value.hint


def test_a_location_in_a_subgraph_is_found(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere")
    branch = helper.make_graph([], "branch", [], [], [tensor])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node], "m", [], []))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert external_files(tmp_path / "m.onnx") == {"elsewhere"}


def test_bytes_that_are_no_model_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for content in (b"\x3a\xff\xff", b"\xff" * 40, b"\x0f"):
        path.write_bytes(content)
        with pytest.raises(MalformedMessage):
            external_files(path)


def linked(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"l": linked("w", tarfile.SYMTYPE, "/etc/passwd")}, "isn't a regular file"),
        ({"l": linked("w", tarfile.LNKTYPE, "m.onnx")}, "isn't a regular file"),
        ({"l": linked("w", tarfile.CHRTYPE)}, "isn't a regular file"),
        ({"../w": b"1"}, "leads out"),
        ({"/w": b"1"}, "leads out"),
        ({"./m.onnx": b"1"}, "twice"),
        ({"other.onnx": b"1"}, "one .onnx"),
    ],
)
def test_a_pack_with_more_than_files_of_its_own_is_refused(
    entry: dict[str, bytes], told: str, tmp_path: Path
) -> None:
    path = tar(tmp_path / "m.tar", **({"m.onnx": b"1"} | entry))
    with pytest.raises(InvalidRequest, match=told):
        sources.check(path, SourceFormat.ONNX)


def test_a_pack_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = packed(save(tmp_path / "m.onnx"))
    path.write_bytes(path.read_bytes()[: SIZE * SIZE * 4])
    with pytest.raises(MalformedPack):
        packs.members(path)
    with pytest.raises(InvalidRequest):
        sources.check(path, SourceFormat.ONNX)
