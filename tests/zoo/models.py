"""The zoo: the light models inside the ``onnx`` package, and small ``transformers`` of many kinds.

All have random weights, so what is tested is whether their graphs can be built, and what is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from tests.zoo.runner import Source
from workers import graphs
from workers.profiles import resolve_profiles, shapes_at_batch
from workers.samples import random_arrays

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
SAMPLES = 4
_SEED = 0


def names() -> list[str]:
    return [path.stem.removeprefix("light_") for path in sorted(LIGHT.glob("*.onnx"))] + list(
        TRANSFORMERS
    )


def source(name: str, folder: Path) -> Source:
    """A model of the zoo, written to a folder where it has to be made."""
    if name in TRANSFORMERS:
        return _transformer(name, folder)
    path = LIGHT / f"light_{name}.onnx"
    model = onnx.load(str(path))
    inputs = graphs.input_specs(model)
    profile = resolve_profiles(inputs, ())[0]
    batches = [
        random_arrays(inputs, shapes_at_batch(inputs, profile, 1), seed=_SEED + n)
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
    wrapped = _WRAPPERS[next(iter(inputs))](model.eval(), output)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(
            wrapped,
            tuple(tensor[:2] for tensor in inputs.values()),
            dynamic_shapes=tuple({0: batch} for _ in inputs),
        )
    path = folder / f"{name}.pt2"
    torch.export.save(program, path)
    samples = {spec: tensor.numpy() for spec, tensor in inputs.items()}
    return Source(name=name, path=path, format="pt2", samples=samples)
