"""The name of a model that was submitted without one: what tells it, and in which order."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from farm.client import Farm
from farm.client.generic_names import is_generic
from farm.client.naming import ModelName, default_name
from farm.errors import NameMissing
from farm.formats.packs import Pack
from farm.specs.source import SourceFormat
from farm.testing.stub_farm import StubFarm

HASH = "4dbbe1a5b1f0a5c1a9e6e0ea65bfb2c1f9b1d2aa"
HUB = f"hub/models--openai--whisper-tiny/snapshots/{HASH}"


def field(number: int, value: bytes) -> bytes:
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def onnx(graph: str = "main_graph", **metadata: str) -> bytes:
    """An ONNX model of one node, by its bytes."""
    entries = [field(14, field(1, k.encode()) + field(2, v.encode())) for k, v in metadata.items()]
    node = field(1, field(4, b"Relu"))
    producer = field(2, b"an exporter")
    return producer + field(7, node + field(2, graph.encode())) + b"".join(entries)


def named(path: Path, format: SourceFormat | None = None, **given: Any) -> ModelName:
    by_suffix = {".onnx": SourceFormat.ONNX, ".safetensors": SourceFormat.SAFETENSORS}
    return default_name(path, path, format or by_suffix.get(path.suffix, SourceFormat.PT2), **given)


@pytest.fixture
def put(tmp_path: Path):
    """Writes a file below a folder that says nothing."""

    def put_(name: str, content: bytes | dict[str, Any] = b"") -> Path:
        path = tmp_path / "tmp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
        return path

    return put_


@pytest.mark.parametrize(
    "name",
    """
    model Model MODEL_FP16 model-00001-of-00002 model.quant model_q4f16 model1 model_v2 pytorch_model
    saved_model savedmodel weights best last best_model checkpoint checkpoint-500 epoch=3-step=1000 net
    network export exported final index main onnx encoder encoder_model decoder_with_past_model
    decoder_model_merged diffusion_pytorch_model main_graph torch_jit torch-jit-export tf2onnx tf2onnx__42
    functional_1 sequential GraphModule 1 v3 fp16 7f9a3c1be0d24c55 3f2504e0-4f89-11d3-9a0c-0305e82c3301
    """.split(),
)
def test_a_name_that_any_model_may_have_is_generic(name: str) -> None:
    assert is_generic(name)


@pytest.mark.parametrize(
    "name",
    "resnet50 digits my-model best-resnet bert_fp16 whisper-tiny yolov8n opt-125m b0 sam2 m model-x".split(),
)
def test_a_name_that_tells_one_model_from_another_is_not(name: str) -> None:
    assert not is_generic(name)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("my model.onnx", "my-model"),
        ("resnet50.fp16.onnx", "resnet50.fp16"),
        ("org/bert.safetensors", "bert"),
        ("folder/digits.pt2", "digits"),
    ],
)
def test_the_files_own_name_is_taken_if_it_tells(put, path: str, name: str) -> None:
    assert named(put(path, onnx("another"))) == ModelName(name)


@pytest.mark.parametrize(
    ("path", "name", "folder"),
    [
        ("resnet50/model.onnx", "resnet50", "resnet50"),
        ("resnet50/1/model.onnx", "resnet50", "resnet50"),
        ("my bert/onnx/model_fp16.onnx", "my-bert", "my bert"),
        (f"{HUB}/model.safetensors", "whisper-tiny", "models--openai--whisper-tiny"),
        (f"{HUB}/onnx/model.onnx", "whisper-tiny", "models--openai--whisper-tiny"),
        (f"{HUB}/onnx/encoder_model.onnx", "whisper-tiny-encoder", "models--openai--whisper-tiny"),
        (f"hub/models--gpt2/snapshots/{HASH}/model.onnx", "gpt2", "models--gpt2"),
        ("whisper/decoder_with_past_model.onnx", "whisper-decoder-with-past", "whisper"),
        ("sdxl/text_encoder_2/model.onnx", "sdxl-text-encoder-2", "sdxl"),
        ("sdxl/vae_decoder/model.onnx", "sdxl-vae-decoder", "sdxl"),
        ("my-encoder/encoder.onnx", "my-encoder", "my-encoder"),
        ("llama/model-00001-of-00002.safetensors", "llama", "llama"),
        ("yolo/weights/best.pt2", "yolo", "yolo"),
    ],
)
def test_a_generic_file_is_named_after_the_folder_that_tells(
    put, path: str, name: str, folder: str
) -> None:
    assert named(put(path, onnx())) == ModelName(name, f"the folder {folder}")


@pytest.mark.parametrize(
    "path",
    [
        "model.onnx",
        "models/model.onnx",
        "Downloads/model.pt2",
        "resnet50/models/model.onnx",
        "resnet50/export/1/2/3/model.onnx",
        f"runs/{HASH}/model.safetensors",
        f"hub/models--org--model/snapshots/{HASH}/model.onnx",
    ],
)
def test_where_nothing_tells_a_name_is_asked_for(put, path: str) -> None:
    with pytest.raises(NameMissing) as caught:
        named(put(path, onnx()))
    assert caught.value.hint == "pass its name: --name (name=…)"


@pytest.mark.parametrize("folder", ["home/joe", "Users/joe"])
def test_a_users_home_does_not_give_its_name_to_a_model(put, folder: str) -> None:
    with pytest.raises(NameMissing):
        named(put(f"{folder}/model.pt2"))


def test_a_graphs_name_goes_before_all_around_it(put) -> None:
    put("folder/config.json", {"_name_or_path": "org/other"})
    made = put("folder/model.onnx", onnx("mobilenet v2", model_name="another"))
    assert named(made) == ModelName("mobilenet-v2", "its graph's name")


def test_what_a_models_metadata_calls_it_follows_its_graphs_name(put) -> None:
    made = put("folder/model.onnx", onnx("torch_jit", author="me", model_name="yolov8n"))
    assert named(made) == ModelName("yolov8n", "its metadata")


@pytest.mark.parametrize("graph", ["main_graph", "g", "", "tf2onnx"])
def test_a_graph_that_exporters_name_tells_nothing(put, graph: str) -> None:
    assert named(put("vgg/model.onnx", onnx(graph))).name == "vgg"


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, onnx("resnet")[:-4]])
def test_a_damaged_graph_tells_nothing_and_fails_nothing(put, data: bytes) -> None:
    assert named(put("vgg/model.onnx", data)).name == "vgg"


def test_a_graph_in_a_pack_tells_the_packs_name(put, tmp_path: Path) -> None:
    inner = put("model.onnx", onnx("resnet50"))
    packed = tmp_path / "model.tar"
    Pack(name="model", files={"model.onnx": inner}).write(packed)
    assert named(packed, SourceFormat.ONNX) == ModelName("resnet50", "its graph's name")


@pytest.mark.parametrize(
    ("config", "given", "name", "after"),
    [
        (
            {"_name_or_path": "openai/whisper-base"},
            {},
            "whisper-base",
            "_name_or_path in config.json",
        ),
        ({"_name_or_path": "/root/out/my-bert/"}, {}, "my-bert", "_name_or_path in config.json"),
        ({"_name_or_path": f"/x/{HUB}"}, {}, "whisper-tiny", "_name_or_path in config.json"),
        ({"_name_or_path": "./checkpoint-500"}, {}, "folder", "the folder folder"),
        ({"_name_or_path": ""}, {}, "folder", "the folder folder"),
        ({"_name_or_path": 7}, {}, "folder", "the folder folder"),
        (
            {"architecture": "resnet50d", "num_classes": 9},
            {},
            "resnet50d",
            "the architecture in config.json",
        ),
        ({"architecture": "amd64"}, {}, "folder", "the folder folder"),
        ({}, {"architecture": "timm:resnet18"}, "resnet18", "its architecture"),
        # A class is shared by all models of it: the folder tells more.
        ({"architectures": ["BertModel"]}, {}, "folder", "the folder folder"),
        ({}, {"architecture": "transformers:BertModel"}, "folder", "the folder folder"),
    ],
)
def test_a_configuration_tells_what_its_weights_are_called(
    put, config: dict[str, Any], given: dict[str, Any], name: str, after: str
) -> None:
    put("folder/config.json", config)
    weights = put("folder/model.safetensors", b"weights")
    assert named(weights, **given) == ModelName(name, after)


@pytest.mark.parametrize(
    ("config", "given", "after"),
    [
        ({"architectures": ["BertModel"]}, {}, "the architecture in config.json"),
        ({}, {"architecture": "transformers:BertModel"}, "its architecture"),
    ],
)
def test_a_class_gives_its_name_where_nothing_else_does(
    put, config: dict[str, Any], given: dict[str, Any], after: str
) -> None:
    put("models/config.json", config)
    weights = put("models/model.safetensors", b"weights")
    assert named(weights, **given) == ModelName("BertModel", after)


def test_a_configuration_that_is_given_goes_before_the_one_beside_the_weights(put) -> None:
    put("folder/config.json", {"_name_or_path": "beside"})
    given = put("elsewhere/bert.json", {"_name_or_path": "given"})
    weights = put("folder/model.safetensors", b"weights")
    assert named(weights, config=given) == ModelName("given", "_name_or_path in bert.json")
    assert named(weights, config={"_name_or_path": "org/inline"}).name == "inline"


def test_a_configuration_above_a_folder_of_exports_counts(put) -> None:
    put("folder/config.json", {"_name_or_path": "openai/whisper-base"})
    made = put("folder/onnx/encoder_model.onnx", onnx())
    assert named(made).name == "whisper-base-encoder"


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_none_is_passed_over(put, content: bytes) -> None:
    put("folder/config.json", content)
    assert named(put("folder/model.safetensors", b"weights")).name == "folder"


def test_a_folder_gives_its_name_to_the_model_in_it(put) -> None:
    file = put("bert-v1.5/model.onnx", onnx("graph of another name"))
    assert default_name(file.parent, file, SourceFormat.ONNX) == ModelName("bert-v1.5")


def test_a_savedmodel_is_named_after_its_folder_or_the_one_above(put) -> None:
    graph = put("resnet/1/saved_model.pb", b"graph")
    made = default_name(graph.parent, graph.parent, SourceFormat.SAVEDMODEL)
    assert made == ModelName("resnet", "the folder resnet")
    other = put("mobilenet.v2/saved_model.pb", b"graph").parent
    assert default_name(other, other, SourceFormat.SAVEDMODEL) == ModelName("mobilenet.v2")


def test_a_file_in_a_generic_folder_gives_its_own_name(put) -> None:
    file = put("onnx/resnet50.onnx", onnx())
    assert default_name(file.parent, file, SourceFormat.ONNX) == ModelName("resnet50")


def test_a_file_in_the_working_folder_is_named_after_it(
    put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(put("resnet50/model.onnx", onnx()).parent)
    assert named(Path("model.onnx")).name == "resnet50"
    assert named(Path("../resnet50/model.onnx")).name == "resnet50"


def test_a_link_in_a_hubs_cache_is_named_after_where_it_lies(put) -> None:
    blob = put(f"hub/models--openai--whisper-tiny/blobs/{HASH}", onnx())
    link = put(f"{HUB}/other.txt").parent / "model.onnx"
    link.symlink_to(blob)
    assert named(link).name == "whisper-tiny"


def test_a_name_fits_the_rules_for_names(put) -> None:
    made = named(put(f"{'long ' * 40}name/encoder.onnx", onnx())).name
    assert len(made) == 100
    assert made.endswith("-encoder")
    assert named(put("(resnet)/model.onnx", onnx())).name == "resnet"


def test_two_files_called_alike_become_two_models(farm: Farm, stub: StubFarm, put) -> None:
    for folder in ("resnet50", "bert"):
        path = put(f"{folder}/model.pt2")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/archive_format", "pt2")
        build = farm.submit(path, targets=["sm_89"], precisions=["fp16"])
        assert build.named_after == f"the folder {folder}"
    assert [sent["model"] for sent in stub.submitted] == ["resnet50", "bert"]


def test_a_digest_needs_a_name(farm: Farm, stub: StubFarm) -> None:
    with pytest.raises(NameMissing, match="given by its digest"):
        farm.submit("sha256:" + "a" * 64, targets=["sm_89"], precisions=["fp16"])
    assert stub.submitted == []


def test_nothing_is_sent_before_the_name_is_known(farm: Farm, stub: StubFarm, put) -> None:
    path = put("models/model.onnx", onnx())
    with pytest.raises(NameMissing):
        farm.submit(path, targets=["sm_89"], precisions=["fp16"])
    assert stub.seen == []
    build = farm.submit(path, name="digits", targets=["sm_89"], precisions=["fp16"])
    assert build.named_after is None
