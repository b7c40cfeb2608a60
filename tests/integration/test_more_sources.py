"""TorchScript and safetensors: built whole, held against the source, and refused where it must be."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from farm.client.sources import architecture, find
from farm.errors import InvalidModel, InvalidRequest, ProfileMismatch, SourceRefused
from farm.formats import sources
from farm.schemas.submission import Source
from farm.specs.architectures import ARCHITECTURES
from farm.specs.precision import Precision
from farm.specs.shapes import ShapeRange
from farm.specs.source import Architecture, SourceFormat
from farm.stages import JobKind
from tests.zoo import runner
from workers.graphs import interface
from workers.programs.eager import EagerModel
from workers.sources import architectures
from workers.sources.torchscript import TorchScriptSource

warnings.filterwarnings("ignore", category=FutureWarning)  # TorchScript is deprecated
RANDOM = np.random.default_rng(0)
DIGEST = "sha256:" + "0" * 64


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3)
        self.layers = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.twice = True

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made = self.layers(self.conv(image))
        if self.twice:
            made = made * 2
        return made


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.table(input_ids) * attention_mask.unsqueeze(-1)
        return found, found.mean(1)


def traced(path: Path) -> Path:
    torch.jit.trace(Images().eval(), torch.rand(2, 3, 8, 8)).save(path)
    return path


def scripted(path: Path, module: nn.Module | None = None) -> Path:
    torch.jit.script((module or Images()).eval()).save(path)
    return path


class Counting(nn.Module):
    """Keeps how often it was called, and adds it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return image * 2 + self.calls


def test_torchscript_that_keeps_state_from_call_to_call_is_refused_in_these_words(
    tmp_path: Path,
) -> None:
    source = TorchScriptSource(scripted(tmp_path / "m.pt", Counting()))
    with pytest.raises(InvalidModel, match="keeps state between calls") as refused:
        source.run({"image": np.ones((2, 3), np.float32)})
    assert "pass its state as inputs and outputs" in refused.value.hint


def sizes(low: list[int], opt: list[int], high: list[int]) -> ShapeRange:
    return ShapeRange(min=tuple(low), opt=tuple(opt), max=tuple(high))


def test_traced_torchscript_is_built_and_held_against_itself(tmp_path: Path) -> None:
    path = traced(tmp_path / "m.pt")
    assert find(path).format is SourceFormat.TORCHSCRIPT
    samples = {"image": RANDOM.random((16, 3, 8, 8), np.float32)}
    source = runner.Source(name="m", path=path, format="torchscript", samples=samples)
    precisions = [Precision.FP16, Precision.INT8]
    for one in runner.build(source, precisions=precisions, gpus=["sm_89"], folder=tmp_path):
        assert one.error is None, one.error
        assert one.accuracy.cosine_mean > 0.99
        assert one.facts["inputs"] == [
            {"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]}
        ]


def test_scripted_torchscript_has_the_shapes_of_its_profile(tmp_path: Path) -> None:
    profile = {
        "input_ids": sizes([1, 4], [2, 8], [4, 16]),
        "attention_mask": sizes([1, 4], [2, 8], [4, 16]),
    }
    source = runner.Source(
        name="m",
        path=scripted(tmp_path / "m.pt", Tokens()),
        format="torchscript",
        samples={},
        profiles=[profile],
    )
    made = runner.stage(source, JobKind.EXPORT, tmp_path)
    assert made.facts["check"]["max_abs_error"] < 1e-5
    model = onnx.load(str(made.outputs["onnx"]))
    ids, mask = interface.input_specs(model)
    assert (ids.dtype, ids.shape) == ("int64", ("batch", "input_ids_1"))
    assert (mask.dtype, mask.shape) == ("int64", ("batch", "attention_mask_1"))
    assert [output.name for output in interface.output_specs(model)] == ["output_0", "output_1"]


def test_scripted_torchscript_without_a_profile_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ProfileMismatch, match="image") as caught:
        TorchScriptSource(scripted(tmp_path / "m.pt")).input_specs(())
    assert "torch.jit.trace" in (caught.value.hint or "")


class Writes(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        torch.save(image, self.path)
        return image


class Reads(Writes):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.from_file(self.path, True, 4) + image


class WritesByOps(Writes):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        torch.ops.aten.save(image, self.path)
        return image


class CallsOthers(Writes):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.ops.debugprims.load_tensor(
            self.path, [1], [1], dtype=torch.float32, device=torch.device("cpu")
        )


@pytest.mark.parametrize("kind", [Writes, Reads, WritesByOps, CallsOthers])
def test_torchscript_that_touches_files_is_refused(kind: type[Writes], tmp_path: Path) -> None:
    target = tmp_path / "touched"
    path = scripted(tmp_path / "m.pt", kind(str(target)))
    with pytest.raises(InvalidModel, match="doesn't run") as caught:
        TorchScriptSource(path)
    assert caught.value.hint
    assert not target.exists()


def test_a_pickle_called_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(Images().state_dict(), path)
    with pytest.raises(SourceRefused):
        find(path)
    with pytest.raises(SourceRefused):
        sources.check(path, SourceFormat.TORCHSCRIPT)
    with pytest.raises(SourceRefused, match="format torchscript"):
        sources.check(traced(tmp_path / "t.pt"), SourceFormat.PT2)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 40,
    "image_size": 32,
    "patch_size": 8,
}


def weights(path: Path, name: str, config: Mapping[str, Any] = SMALL) -> Architecture:
    named = Architecture(library="transformers", name=name, config=dict(config))
    torch.manual_seed(0)
    save_model(architectures._make(named), str(path))
    return named


@pytest.mark.heavy
def test_safetensors_of_a_named_architecture_are_built(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tokens = {
        "input_ids": RANDOM.integers(0, 99, (16, 8)),
        "attention_mask": np.ones((16, 8), np.int64),
    }
    source = runner.Source(
        name="m",
        path=path,
        format="safetensors",
        samples=tokens,
        architecture=weights(path, "BertModel").model_dump(),
    )
    [one] = runner.build(source, precisions=[Precision.FP16], gpus=["sm_89"], folder=tmp_path)
    assert one.error is None, one.error
    assert one.accuracy.cosine_mean > 0.999
    assert [output["name"] for output in one.facts["outputs"]] == [
        "last_hidden_state",
        "pooler_output",
    ]
    # The batch is the farm's own; the text's length ends where the configuration says.
    assert one.facts["profiles"][0]["input_ids"] == {"min": [1, 1], "opt": [8, 16], "max": [64, 40]}


def test_images_are_of_the_size_in_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    program = architectures.load_program(path, weights(path, "ViTForImageClassification"))
    assert EagerModel(program).run({"pixel_values": np.zeros((3, 3, 32, 32), np.float32)})


@pytest.mark.heavy
def test_safetensors_are_pruned_and_built_as_programs_are(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    source = runner.Source(
        name="m",
        path=path,
        format="safetensors",
        samples={"pixel_values": RANDOM.random((4, 3, 32, 32), np.float32)},
        architecture=weights(path, "ViTForImageClassification").model_dump(),
    )
    [one] = runner.build(
        source,
        precisions=[Precision.FP32],
        gpus=["torchscript:cpu"],
        folder=tmp_path,
        prune={"method": "l1-unstructured", "amount": 0.1},
    )
    assert one.error is None, one.error
    assert one.accuracy.cosine_mean > 0.9


def test_weights_of_another_module_are_refused_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    named = weights(path, "BertModel")
    save_file({"classifier.weight": torch.zeros(2, 32)}, path)
    with pytest.raises(InvalidModel, match=r"classifier\.weight") as caught:
        architectures.load_weights(path, named)
    assert "embeddings.word_embeddings.weight" in caught.value.detail
    assert "--config" in (caught.value.hint or "")


def test_a_configuration_of_another_model_is_refused(tmp_path: Path) -> None:
    named = Architecture(library="transformers", name="BertModel", config={"model_type": "gpt2"})
    with pytest.raises(InvalidModel, match="'gpt2'"):
        architectures.load_weights(tmp_path / "w", named)


@pytest.mark.parametrize(
    ("library", "name", "config", "told"),
    [
        ("transformers", "AutoModel", {}, "doesn't support transformers's 'AutoModel'"),
        ("transformers", "Trainer", {}, "doesn't support transformers's 'Trainer'"),
        ("timm", "hf-hub:someone/model", {}, "hf-hub"),
        ("transformers", "BertModel", {"auto_map": {"AutoModel": "a--b.C"}}, "auto_map"),
        ("transformers", "BertModel", {"_attn_implementation": "someone/kernel"}, "select code"),
        ("timm", "resnet50", {"checkpoint_path": "/etc/passwd"}, "checkpoint_path"),
        ("torchvision", "resnet50", {"progress": True}, "not progress"),
        ("os", "system", {}, "'transformers', 'timm' or 'torchvision'"),
    ],
)
def test_no_code_is_chosen_by_a_request(
    library: str, name: str, config: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Source.model_validate(
            {
                "digest": DIGEST,
                "format": "safetensors",
                "architecture": {"library": library, "name": name, "config": config},
            }
        )


@pytest.mark.parametrize("format", ["onnx", "safetensors"])
def test_an_architecture_belongs_to_safetensors(format: str) -> None:
    named = {"library": "transformers", "name": "BertModel"} if format == "onnx" else None
    with pytest.raises(ValueError, match="architecture"):
        Source.model_validate({"digest": DIGEST, "format": format, "architecture": named})


def test_the_client_reads_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 32}')
    assert architecture("transformers:BertModel", tmp_path / "config.json") == {
        "library": "transformers",
        "name": "BertModel",
        "config": {"hidden_size": 32},
    }
    for given, config in (("BertModel", None), (None, {"a": 1})):
        with pytest.raises(InvalidRequest):
            architecture(given, config)


def test_every_listed_class_is_there() -> None:
    import transformers

    for name in ARCHITECTURES["transformers"]:
        assert name == "WhisperEncoder" or isinstance(getattr(transformers, name), type), name
