"""Folders as hubs and exporters lay them out: what of them is submitted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farm.client import Farm
from farm.client.sources import find
from farm.errors import InvalidRequest, SourceRefused
from farm.formats.shards import Shards
from farm.specs.source import SourceFormat
from farm.testing import documents
from farm.testing.stub_farm import StubFarm
from tests.unit.conftest import Run

Put = Callable[..., Path]
BERT = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 8}
ONNX = b"\x08\x09\x3a\x00"  # a model with an empty graph


def safetensors(**sizes: int) -> bytes:
    """Weights of so many bytes by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, size in sizes.items():
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    content = b"".join(name[:1].encode() * size for name, size in sizes.items())
    return len(text).to_bytes(8, "little") + text + content


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def put_(name: str, content: bytes | dict[str, Any] = b"") -> Path:
        path = tmp_path / "tiny-bert" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(json.dumps(content).encode() if isinstance(content, dict) else content)
        return tmp_path / "tiny-bert"

    return put_


def test_a_hubs_folder_is_submitted_as_it_is(farm: Farm, stub: StubFarm, put: Put) -> None:
    weights = safetensors(a=5, b=3)
    put("tokenizer.json", {})
    put("config.json", BERT)
    folder = put("model.safetensors", weights)
    build = farm.submit(folder, targets=["sm_89"], precisions=["fp16"])
    [sent] = stub.submitted
    assert sent["model"] == "tiny-bert"
    assert sent["source"] == {
        "digest": documents.digest_of(weights),
        "format": "safetensors",
        "architecture": {"library": "transformers", "name": "BertModel", "config": BERT},
    }
    assert build.taken == folder / "model.safetensors"


def test_weights_beside_their_configuration_need_no_architecture(
    farm: Farm, stub: StubFarm, put: Put
) -> None:
    put("config.json", BERT)
    path = put("model.safetensors", safetensors(a=1)) / "model.safetensors"
    farm.submit(path, targets=["sm_89"], precisions=["fp16"])
    assert stub.submitted[0]["source"]["architecture"]["name"] == "BertModel"
    farm.submit(
        path, targets=["cpu"], precisions=["fp32"], architecture="transformers:BertForMaskedLM"
    )
    assert stub.submitted[1]["source"]["architecture"]["name"] == "BertForMaskedLM"


def test_timms_configuration_names_its_function(put: Put) -> None:
    config = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {"tag": "a1"}}
    put("config.json", config)
    found = find(put("model.safetensors", safetensors(a=1)))
    assert (found.architecture, found.config) == ("timm:resnet18", {"num_classes": 10})


def test_weights_in_several_files_are_submitted_as_one(
    farm: Farm, stub: StubFarm, put: Put
) -> None:
    put("config.json", BERT)
    put("model-00001-of-00002.safetensors", safetensors(a=5, b=3))
    put("model-00002-of-00002.safetensors", safetensors(c=2))
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    index["weight_map"]["c"] = "model-00002-of-00002.safetensors"
    folder = put("model.safetensors.index.json", index)
    found = find(folder)
    assert isinstance(found.content, Shards)
    whole = b"".join(found.content.chunks())
    assert len(whole) == found.content.total_bytes
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    assert {name: one["data_offsets"] for name, one in header.items() if name in "abc"} == {
        "a": [0, 5],
        "b": [5, 8],
        "c": [8, 10],
    }
    assert whole[8 + length :] == b"aaaaabbbcc"
    farm.submit(folder, targets=["sm_89"], precisions=["fp16"])
    assert documents.digest_of(whole) in stub.blobs


def test_a_part_of_weights_that_is_missing_is_named(put: Put) -> None:
    put("config.json", BERT)
    folder = put("model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors"}})
    with pytest.raises(InvalidRequest, match=r"names model-1\.safetensors, which isn't there"):
        find(folder)


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (["model.onnx"], "model.onnx"),
        (["bert.onnx"], "bert.onnx"),
        (["onnx/model.onnx", "config.json"], "onnx/model.onnx"),
        (
            ["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"],
            "onnx/model.onnx",
        ),
        (["onnx/model_q4f16.onnx", "onnx/model.onnx", "onnx/model_bnb4.onnx"], "onnx/model.onnx"),
    ],
)
def test_of_an_exports_folder_the_full_model_is_taken(
    put: Put, files: list[str], taken: str
) -> None:
    for name in files:
        folder = put(name, {"model_type": "bert"} if name.endswith("json") else ONNX)
    found = find(folder)
    assert (found.format, found.file) == (SourceFormat.ONNX, folder / taken)


@pytest.mark.parametrize(
    "files",
    [
        ["onnx/encoder_model.onnx", "onnx/decoder_model.onnx"],
        ["onnx/model_fp16.onnx", "onnx/model_int8.onnx"],
        ["onnx/model.onnx", "onnx/vision_model.onnx"],
        ["cat.onnx", "dog.onnx"],
    ],
)
def test_several_models_in_a_folder_are_asked_about(put: Put, files: list[str]) -> None:
    for name in files:
        folder = put(name, ONNX)
    with pytest.raises(InvalidRequest, match="which one") as caught:
        find(folder)
    assert all(name in caught.value.detail for name in files)
    assert f"farm submit {folder}" in str(caught.value.hint)


def test_a_class_that_the_farm_does_not_build_is_taken_as_onnx_if_that_is_there(put: Put) -> None:
    put("config.json", {"architectures": ["MambaModel"]})
    folder = put("model.safetensors", safetensors(a=1))
    with pytest.raises(
        SourceRefused, match="doesn't support transformers's 'MambaModel'"
    ) as caught:
        find(folder)
    assert f"optimum-cli export onnx --model {folder}" in str(caught.value.hint)
    put("onnx/model.onnx", ONNX)
    assert find(folder).file == folder / "onnx/model.onnx"


@pytest.mark.parametrize(
    ("files", "told", "hint"),
    [
        ({"model.safetensors": safetensors(a=1)}, "no config.json", "--architecture"),
        (
            {"model.safetensors": safetensors(a=1), "config.json": BERT | {"auto_map": {"x": "y"}}},
            "auto_map would select code",
            "optimum-cli",
        ),
        ({"config.json": BERT, "pytorch_model.bin": b"x"}, "pickles", "safe_serialization=True"),
        (
            {"adapter_config.json": {}, "adapter_model.safetensors": b"x"},
            "adapter",
            "merge_and_unload",
        ),
        (
            {"model_index.json": {}, "unet/config.json": {}, "vae/config.json": {}},
            "unet, vae",
            "export",
        ),
        ({"config.json": b"{", "model.safetensors": safetensors(a=1)}, "isn't JSON", "download"),
        ({"config.json": BERT}, "no model that the farm builds", "model.safetensors"),
        ({"readme.md": b"hello"}, "no model that the farm builds", "saved_model.pb"),
        ({"config.json": BERT, "model.safetensors": b"\x80\x04 pickle"}, "pickle", "ONNX"),
    ],
)
def test_what_a_folder_lacks_is_told_before_anything_is_sent(
    farm: Farm, stub: StubFarm, put: Put, files: dict[str, Any], told: str, hint: str
) -> None:
    for name, content in files.items():
        folder = put(name, content)
    with pytest.raises(InvalidRequest, match=told) as caught:
        farm.submit(folder, targets=["sm_89"], precisions=["fp16"])
    assert hint in str(caught.value.hint)
    assert not stub.seen


def test_the_command_says_which_file_of_a_folder_it_took(run: Run, put: Put) -> None:
    folder = put("onnx/model.onnx", ONNX)
    put("onnx/model_fp16.onnx", ONNX)
    result = run("submit", folder, "--gpu", "sm_89")
    assert f"submitted {folder / 'onnx/model.onnx'}\n" in result.stdout
