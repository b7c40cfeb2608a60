"""The zoo: the light models inside the ``onnx`` package, ``transformers`` of many kinds, two of real size.

All have random weights, so what is tested is whether their graphs can be built, and what is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from tests.zoo.runner import Source
from workers import demo
from workers.graphs import interface
from workers.inputs.batch import Batch
from workers.inputs.profiles import resolve_profiles
from workers.inputs.samples import random_arrays

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
SAMPLES = 4
LARGE_SAMPLES = 16
_SEED = 0


def small() -> list[str]:
    """Those of the support matrix."""
    light = [path.stem.removeprefix("light_") for path in sorted(LIGHT.glob("*.onnx"))]
    return light + list(TRANSFORMERS)


def large() -> list[str]:
    """Those of real sizes."""
    return list(LARGE)


def source(name: str, folder: Path) -> Source:
    """A model of the zoo, written to a folder where it has to be made."""
    if name in LARGE:
        return LARGE[name](folder)
    if name in TRANSFORMERS:
        return _transformer(name, folder)
    path = LIGHT / f"light_{name}.onnx"
    model = onnx.load(str(path))
    inputs = interface.input_specs(model)
    profile = resolve_profiles(inputs, ())[0]
    batches = [
        random_arrays(inputs, Batch.of(inputs, profile).at(profile, 1), seed=_SEED + n)
        for n in range(SAMPLES)
    ]
    samples = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return Source(name=name, path=path, format="onnx", samples=samples)


class _Output(nn.Module):
    """A model that gives one tensor: the named output."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def _run(self, **given: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(self.model(**given, return_dict=True), self.output)
        return result


class _OfTokens(_Output):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self._run(input_ids=input_ids, attention_mask=attention_mask)


class _OfImages(_Output):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self._run(pixel_values=pixel_values)


class _OfSound(_Output):
    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        return self._run(input_features=input_features)


_WRAPPERS = {"input_ids": _OfTokens, "pixel_values": _OfImages, "input_features": _OfSound}


Maker = Callable[[], tuple[nn.Module, Mapping[str, torch.Tensor], str]]


def _image(*shape: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(SAMPLES, *shape)}


def _tokens(vocabulary: int, length: int = 16) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(0, vocabulary, (SAMPLES, length)),
        "attention_mask": torch.ones(SAMPLES, length, dtype=torch.long),
    }


def _vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=64,
        patch_size=16,
    )
    return ViTForImageClassification(config), _image(3, 64, 64), "logits"


def _bert() -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=500,
    )
    return BertModel(config), _tokens(500), "last_hidden_state"


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=500)
    return T5EncoderModel(config), _tokens(500), "last_hidden_state"


def _whisper() -> Any:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=64,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=128,
        num_mel_bins=40,
        max_source_positions=100,
    )
    return (
        WhisperEncoder(config),
        {"input_features": torch.randn(SAMPLES, 40, 200)},
        "last_hidden_state",
    )


def _convnext() -> Any:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1])
    return ConvNextForImageClassification(config), _image(3, 64, 64), "logits"


def _resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1])
    return ResNetForImageClassification(config), _image(3, 64, 64), "logits"


def _detr() -> Any:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        out_features=["stage4"],
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=10,
    )
    return DetrForObjectDetection(config), _image(3, 64, 64), "logits"


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=64, n_layer=2, n_head=4, vocab_size=500, n_positions=64, use_cache=False
    )
    return GPT2LMHeadModel(config), _tokens(500), "logits"


TRANSFORMERS: dict[str, Maker] = {
    "bert": _bert,
    "convnext": _convnext,
    "detr": _detr,
    "gpt2": _gpt2,
    "resnet": _resnet,
    "t5-encoder": _t5,
    "vit": _vit,
    "whisper-encoder": _whisper,
}


def _transformer(name: str, folder: Path) -> Source:
    torch.manual_seed(_SEED)
    model, inputs, output = TRANSFORMERS[name]()
    batch = torch.export.Dim("batch", min=1, max=64)
    return _exported(name, folder, model, inputs, output, {0: batch})


def _exported(
    name: str,
    folder: Path,
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    output: str,
    dynamic: Mapping[int, torch.export.Dim],
    profiles: Sequence[Mapping[str, Any]] = (),
) -> Source:
    wrapped = _WRAPPERS[next(iter(inputs))](model.eval(), output)
    with torch.no_grad():
        program = torch.export.export(
            wrapped,
            tuple(tensor[:2] for tensor in inputs.values()),
            dynamic_shapes=tuple(dict(dynamic) for _ in inputs),
        )
    path = folder / f"{name}.pt2"
    torch.export.save(program, path)
    samples = {spec: tensor.numpy() for spec, tensor in inputs.items()}
    return Source(name=name, path=path, format="pt2", samples=samples, profiles=profiles)


def _bert_base(folder: Path) -> Source:
    from transformers import BertConfig, BertModel

    torch.manual_seed(_SEED)
    inputs = {
        "input_ids": torch.randint(0, 30522, (LARGE_SAMPLES, 64)),
        "attention_mask": torch.ones(LARGE_SAMPLES, 64, dtype=torch.long),
    }
    batch = torch.export.Dim("batch", min=1, max=64)
    sequence = torch.export.Dim("sequence", min=2, max=512)
    shapes = {"min": (1, 16), "opt": (8, 64), "max": (8, 128)}
    return _exported(
        "bert-base",
        folder,
        BertModel(BertConfig()),
        inputs,
        "last_hidden_state",
        {0: batch, 1: sequence},
        profiles=[dict.fromkeys(inputs, shapes)],
    )


def _resnet_50(folder: Path) -> Source:
    images = demo.textured_images(LARGE_SAMPLES, seed=_SEED)
    path = folder / "resnet-50.pt2"
    demo.save_program(demo.random_resnet50(images), torch.from_numpy(images[:2]), path)
    profile = {
        "image": {"min": (1, 3, 224, 224), "opt": (8, 3, 224, 224), "max": (16, 3, 224, 224)}
    }
    return Source(
        name="resnet-50", path=path, format="pt2", samples={"image": images}, profiles=[profile]
    )


#: Of real sizes: these have a page of their own.
LARGE: dict[str, Callable[[Path], Source]] = {"bert-base": _bert_base, "resnet-50": _resnet_50}
