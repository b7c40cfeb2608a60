"""SavedModels: packed, looked at without TensorFlow, and built whole where TensorFlow is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

from farm.client.sources import find
from farm.errors import InvalidModel, InvalidRequest
from farm.formats import sources
from farm.formats.packs import Pack
from farm.planning import keys
from farm.specs.precision import Precision
from farm.specs.shapes import Profile, ShapeRange
from farm.specs.source import SourceFormat
from farm.stages import JobKind
from tests.zoo import runner
from workers.runner.toolchain import installed
from workers.sources.savedmodel import files
from workers.sources.savedmodel import source as savedmodel
from workers.sources.savedmodel.source import SavedModelSource

has_tensorflow = pytest.mark.skipif(
    find_spec("tensorflow") is None or find_spec("tf2onnx") is None,
    reason="needs TensorFlow: pip install 'engine-farm[tensorflow]'",
)
RANDOM = np.random.default_rng(0)

#: Saves a SavedModel; TensorFlow stays out of the tests' own process, as it does out of the stages'.
SAVES = """
import sys
import tensorflow as tf

class Images(tf.Module):
    def __init__(self):
        random = tf.random.Generator.from_seed(0)
        self.kernel = tf.Variable(random.normal((3, 3, 3, 8)) * 0.2)
        self.weights = tf.Variable(random.normal((8, 5)) * 0.3)

    @tf.function(input_signature=[
        tf.TensorSpec([None, None, 16, 3], tf.float32, name="image"),
        tf.TensorSpec([None, 5], tf.float32, name="bias"),
    ])
    def __call__(self, image, bias):
        found = tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(image, self.kernel, 2, "SAME")), [1, 2])
        logits = tf.matmul(found, self.weights) + bias
        return {"logits": logits, "bias": tf.nn.softmax(logits)}

class Writes(tf.Module):
    @tf.function
    def hidden(self, x):
        tf.raw_ops.SaveV2(prefix=sys.argv[2], tensor_names=["x"], shape_and_slices=[""], tensors=[x])
        return x

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": self.hidden(x) + 1.0}

module = Writes() if len(sys.argv) > 2 else Images()
tf.saved_model.save(module, sys.argv[1], signatures={"serving_default": module.__call__})
"""


def graph(
    path: Path, *functions: Sequence[str], main: Sequence[str] = (), objects: bytes | None = b""
) -> Path:
    """A folder with a SavedModel of functions of these operators."""
    model = files.message("Saved")()
    meta = model.graphs.add()
    if objects is not None:
        meta.objects = objects
    for name in main:
        meta.graph.node.add(op=name.encode())
    for number, function in enumerate(functions):
        made = meta.graph.library.function.add()
        made.signature.name = f"function_{number}".encode()
        for name in function:
            made.node.add(op=name.encode())
    path.mkdir()
    (path / "saved_model.pb").write_bytes(model.SerializeToString())
    (path / "variables").mkdir()
    (path / "variables/variables.index").write_bytes(b"weights")
    (path / "fingerprint.pb").write_bytes(path.name.encode())
    return path


def packed(folder: Path) -> Path:
    found = find(folder)
    assert found.format is SourceFormat.SAVEDMODEL
    assert isinstance(found.content, Pack)
    path = folder.with_suffix(".tar")
    found.content.write(path)
    return path


def test_a_folder_is_packed_without_what_differs_each_time_it_is_saved(tmp_path: Path) -> None:
    one, two = (packed(graph(tmp_path / name, ["Relu"])) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert find(one)[:3] == (SourceFormat.SAVEDMODEL, one, one)
    sources.check(one, SourceFormat.SAVEDMODEL)


def test_a_folder_without_a_graph_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"saved_model\.pb"):
        find(tmp_path, "savedmodel")


def test_an_archive_without_one_savedmodel_is_refused(tmp_path: Path) -> None:
    none, two = tmp_path / "none.tar", tmp_path / "two.tar"
    file = graph(tmp_path / "m", ["Relu"]) / "saved_model.pb"
    Pack(name="none", files={"my_saved_model.pb": file}).write(none)
    Pack(name="two", files={"a/saved_model.pb": file, "b/saved_model.pb": file}).write(two)
    for path in (none, two, file):
        with pytest.raises(InvalidRequest) as caught:
            sources.check(path, SourceFormat.SAVEDMODEL)
        assert "farm submit FOLDER" in (caught.value.hint or "")


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    folder = graph(tmp_path / "m", ["Relu"])
    (folder / "variables/link").symlink_to("/etc/passwd")
    path = tmp_path / "m.tar"
    subprocess.run(["tar", "cf", path, "-C", folder, "saved_model.pb", "variables"], check=True)
    with pytest.raises(InvalidRequest, match="isn't a regular file"):
        sources.check(path, SourceFormat.SAVEDMODEL)


@pytest.mark.parametrize(
    "operator",
    """
    ReadFile WriteFile ImmutableConst PyFunc EagerPyFunc MatchingFiles MyOwn SaveSlices CopyHost
    FixedUnigramCandidateSampler PrintV2 DecodeProtoV2
    """.split(),
)
def test_an_operator_that_is_not_listed_is_refused(operator: str, tmp_path: Path) -> None:
    path = packed(graph(tmp_path / "m", ["Relu"], ["Const", operator]))
    with pytest.raises(InvalidModel, match=operator) as caught:
        files.unpack(path, tmp_path)
    assert "ONNX" in (caught.value.hint or "")


def test_what_saves_and_restores_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    folder = graph(
        tmp_path / "m",
        ["Relu", "MatMul"],
        ["Const", "SaveV2"],
        ["RestoreV2", "ReadFile"],
        main=["ReadFile"],
        objects=b"objects",
    )
    (folder / "saved_model.pb").write_bytes(
        (folder / "saved_model.pb").read_bytes() + b"\x08\x01"  # the schema's version: unread
    )
    clean = files.unpack(packed(folder), tmp_path)
    assert sorted(path.name for path in clean.rglob("*") if path.is_file()) == [
        "saved_model.pb",
        "variables.index",
    ]
    data = (clean / "saved_model.pb").read_bytes()
    model = files.message("Saved").FromString(data)
    [kept] = model.graphs[0].graph.library.function
    assert [node.op for node in kept.node] == [b"Relu", b"MatMul"]
    assert not model.graphs[0].graph.node
    assert model.graphs[0].objects == b"objects"
    assert b"\x08\x01" in data


def test_a_damaged_graph_and_one_of_tensorflow_1_are_refused(tmp_path: Path) -> None:
    old = (graph(tmp_path / "old", ["Relu"], objects=None) / "saved_model.pb").read_bytes()
    for content in (b"", b"\xff\xff", old):
        with pytest.raises(InvalidModel) as caught:
            files.cleaned(content)
        assert "tf.saved_model.save" in (caught.value.hint or "")


def test_a_worker_without_tensorflow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savedmodel, "find_spec", lambda _name: None)
    with pytest.raises(InvalidModel, match="tensorflow and tf2onnx") as caught:
        SavedModelSource(packed(graph(tmp_path / "m", ["Relu"])), tmp_path)
    assert "pip install 'engine-farm[tensorflow]'" in (caught.value.hint or "")
    assert "ONNX" in (caught.value.hint or "")


def test_keys_of_what_runs_a_savedmodel_cover_its_tools() -> None:
    for kind in (JobKind.EXPORT, JobKind.MEASURE):
        made = keys.tools(kind, None, {"tensorflow": "2.21.0"}, SourceFormat.SAVEDMODEL)
        assert (made["tensorflow"], made["tf2onnx"]) == ("2.21.0", "any")
        assert "tensorflow" not in keys.tools(kind, None, {}, SourceFormat.ONNX)
    assert "tensorflow" not in keys.tools(JobKind.CAST, None, {}, SourceFormat.SAVEDMODEL)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "images"
    subprocess.run([sys.executable, "-c", SAVES, folder], check=True)
    return packed(folder)


@has_tensorflow
def test_a_savedmodel_is_built_and_held_against_itself(images: Path, tmp_path: Path) -> None:
    sizes = ShapeRange(min=(1, 8, 16, 3), opt=(4, 16, 16, 3), max=(8, 32, 16, 3))
    profile: Profile = {"image": sizes}
    source = runner.Source(
        name="m",
        path=images,
        format="savedmodel",
        samples={
            "image": RANDOM.random((8, 16, 16, 3), np.float32),
            "bias": RANDOM.random((8, 5), np.float32),
        },
        profiles=[profile],
    )
    folder = tmp_path / "fp16"
    folder.mkdir()
    [fp16] = runner.build(source, precisions=[Precision.FP16], gpus=["sm_89"], folder=folder)
    folder = tmp_path / "fp32"
    folder.mkdir()
    [fp32] = runner.build(source, precisions=[Precision.FP32], gpus=["cpu"], folder=folder)
    for one in (fp16, fp32):
        assert one.error is None, one.error
        assert one.accuracy.cosine_mean > 0.999
    assert [(spec["name"], spec["shape"]) for spec in fp32.facts["inputs"]] == [
        ("bias", ["batch", 5]),
        ("image", ["batch", "image_1", 16, 3]),
    ]
    assert [spec["name"] for spec in fp32.facts["outputs"]] == ["bias_out", "logits"]
    exported = fp32.results["export"]
    assert exported.facts["check"]["max_abs_error"] < 1e-5
    assert onnx.load(str(exported.outputs["onnx"])).opset_import[0].version >= 19
    assert installed()["tf2onnx"] == exported.job.recipe.tools["tf2onnx"]


@has_tensorflow
def test_one_process_runs_several_batches_says_why_it_cannot_and_ends(
    images: Path, tmp_path: Path
) -> None:
    source = SavedModelSource(images, tmp_path)
    process = source._process
    for size in (1, 3):
        arrays = {
            "image": np.zeros((size, 8, 16, 3), np.float32),
            "bias": np.zeros((size, 5), np.float32),
        }
        assert source.run(arrays)["bias_out"] == pytest.approx(np.full((size, 5), 0.2))
    with pytest.raises(InvalidModel, match=r"\[2, 8, 16, 3\]"):
        source.run(arrays | {"image": np.zeros((2, 8, 16, 3), np.float32)})
    process.kill()
    with pytest.raises(InvalidModel, match="its process died"):
        source.run(arrays)
    assert process.poll() is not None
    assert "tensorflow" not in sys.modules


@has_tensorflow
def test_a_signature_that_calls_what_saves_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files._drop_savers
    for name in ("checked", "unchecked"):
        (tmp_path / name).mkdir()
    folder, target = tmp_path / "writes", tmp_path / "touched"
    subprocess.run([sys.executable, "-c", SAVES, folder, target], check=True)
    with pytest.raises(InvalidModel, match="saves or restores files"):
        SavedModelSource(packed(folder), tmp_path / "checked")
    # Should a call go unseen: the function isn't there to be called.
    monkeypatch.setattr(files, "_drop_savers", lambda found: real(found) and [])
    with pytest.raises(InvalidModel, match="TensorFlow can't load"):
        SavedModelSource(packed(folder), tmp_path / "unchecked")
    assert not list(tmp_path.glob("touched*"))


def test_operators_of_every_function_are_looked_at_and_gradients_are_dropped() -> None:
    model = files.message("Saved")()
    meta = model.graphs.add()
    meta.objects = b""
    library = meta.graph.library
    library.gradient.append(b"\x0a\x01f\x12\x01g")
    library.registered.append(b"\x0a\x01f\x12\x01g")
    for number in range(50):
        made = library.function.add()
        made.signature.name = f"function_{number}".encode()
        made.node.add(op=b"Relu")
    kept = files.message("Saved").FromString(files.cleaned(model.SerializeToString()))
    found = kept.graphs[0].graph.library
    assert (len(found.function), len(found.gradient), len(found.registered)) == (50, 0, 0)
    library.function[49].node.add(op=b"PyFunc")
    with pytest.raises(InvalidModel, match="PyFunc"):
        files.cleaned(model.SerializeToString())
