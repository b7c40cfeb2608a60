"""Builds modules by name with weights from safetensors: from a fixed list, never from a hub.

The configuration is data: none of its fields selects code (``farm.specs.architectures``). A module takes
its library's documented input: tokens with a mask, images, or audio, in the shapes of the configuration;
the batch and the token length are dynamic.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn
from torch.export import Dim, ExportedProgram

from farm.errors import InvalidModel
from farm.specs.architectures import ARCHITECTURES
from farm.specs.source import Architecture
from workers.graphs.check import brief

_BATCH = 2
_MAX_BATCH = 1024
_LENGTH = 16
#: The maximum text length if the configuration doesn't give one.
_MAX_LENGTH = 512
_LONG = 2048
_SHOWN = 5  #: names shown in a message
#: Model types whose positions start after the padding's.
_PADDED_POSITIONS = ("roberta", "xlm-roberta", "mpnet")
_SECOND = 16_000  #: audio samples
_CONFIG_HINT = "pass the weights' config.json: --config config.json"

# If a library tries to fetch from a hub, refuse.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def load_weights(path: Path, architecture: Architecture) -> nn.Module:
    """A module of this architecture with these weights, in fp32 and eval mode.

    Raises:
        InvalidModel: its library isn't installed, its configuration is invalid, or the weights aren't exactly
            the module's.
    """
    module = _make(architecture)
    try:
        missing, unexpected = load_model(module, str(path), strict=False)
    except SafetensorError as err:
        raise InvalidModel(
            f"the weights can't be read as safetensors: {brief(err)}", hint="upload them again"
        ) from err
    except RuntimeError as err:  # mismatched shapes; the message has the tensors' names
        raise InvalidModel(
            f"these aren't the weights of {architecture.name}: {brief(err)}",
            hint=f"name the class that saved them, and {_CONFIG_HINT}",
        ) from err
    if missing or unexpected:
        raise InvalidModel(
            f"these aren't the weights of {architecture.name}: "
            f"missing {_listed(missing)}, unexpected {_listed(unexpected)}",
            hint=f"name the class that saved them, and {_CONFIG_HINT}",
        )
    return module.float().eval()


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN]) or "other"
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def load_program(path: Path, architecture: Architecture) -> ExportedProgram:
    """The module with these weights as a program, with dynamic batch and text length.

    Raises:
        InvalidModel
    """
    module = load_weights(path, architecture)
    example, axes = _example(module, architecture)
    wrapped = _WRAPPERS[next(iter(example))](module)
    try:
        with torch.no_grad():
            return torch.export.export(
                wrapped, tuple(example.values()), dynamic_shapes=tuple(dict(axes) for _ in example)
            )
    except Exception as err:  # torch.export raises dozens of error types
        raise InvalidModel(
            f"torch.export can't export {architecture.name}: {brief(err)}",
            hint="export it yourself: torch.export.save(torch.export.export(model, args), path)",
        ) from err


def _make(architecture: Architecture) -> nn.Module:
    library = architecture.library
    try:
        module = import_module(library)
    except Exception as err:  # ImportError, or any error of a torchvision for another torch
        raise InvalidModel(
            f"this worker has no working {library}: {brief(err)}",
            hint=f"pip install {library} on the worker, or export the model yourself",
        ) from err
    try:
        if library == "transformers":
            made = _transformer(module, architecture)
        elif library == "timm":
            made = module.create_model(architecture.name, pretrained=False, **architecture.config)
        else:
            made = module.models.get_model(architecture.name, weights=None, **architecture.config)
    except InvalidModel:
        raise
    except Exception as err:  # a library may raise anything for a wrong configuration
        raise InvalidModel(
            f"{library} can't create {architecture.name} from this configuration: {brief(err)}",
            hint=_CONFIG_HINT,
        ) from err
    assert isinstance(made, nn.Module)
    return made


def _transformer(transformers: Any, architecture: Architecture) -> nn.Module:
    name = architecture.name
    if name == "WhisperEncoder":
        kind = import_module("transformers.models.whisper.modeling_whisper").WhisperEncoder
    else:
        kind = getattr(transformers, name)
    given = dict(architecture.config)
    named, wanted = (
        given.get("model_type", kind.config_class.model_type),
        kind.config_class.model_type,
    )
    if named != wanted:
        raise InvalidModel(
            f"the configuration is for {named!r}, but {name} is {wanted!r}",
            hint="name the class that saved the weights, from architectures in config.json",
        )
    config = kind.config_class.from_dict(given)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return cast(nn.Module, kind(config))


class _Wrapper(nn.Module):
    """Returns the tensors of a module's output: one, or a dict."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def _tensors(self, *args: torch.Tensor, **given: torch.Tensor) -> Any:
        made = self.module(*args, **given)
        if not isinstance(made, Mapping):
            return made
        return {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}


class _OfTokens(_Wrapper):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self._tensors(input_ids=input_ids, attention_mask=attention_mask)


class _OfPixels(_Wrapper):
    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self._tensors(pixel_values=pixel_values)


class _OfWaves(_Wrapper):
    def forward(self, input_values: torch.Tensor) -> Any:
        return self._tensors(input_values=input_values)


class _OfFeatures(_Wrapper):
    def forward(self, input_features: torch.Tensor) -> Any:
        return self._tensors(input_features=input_features)


class _OfImages(_Wrapper):
    def forward(self, image: torch.Tensor) -> Any:
        return self._tensors(image)


_WRAPPERS: Mapping[str, type[_Wrapper]] = {
    "input_ids": _OfTokens,
    "pixel_values": _OfPixels,
    "input_values": _OfWaves,
    "input_features": _OfFeatures,
    "image": _OfImages,
}
_Example = tuple[dict[str, torch.Tensor], dict[int, Any]]


def _example(module: nn.Module, architecture: Architecture) -> _Example:
    """Example inputs by name, and the dynamic axes of each."""
    takes = ARCHITECTURES[architecture.library][architecture.name]
    batch = {0: Dim("batch", min=1, max=_MAX_BATCH)}
    if architecture.library != "transformers":
        return {"image": torch.zeros(_BATCH, *_image_size(module, architecture))}, batch
    config: Any = module.config
    if takes == "text":
        length = Dim("length", min=1, max=_longest(config))
        tokens = torch.ones(_BATCH, _LENGTH, dtype=torch.int64)
        # Two tensors: torch.export takes one that is passed twice for one input, the last.
        example = {"input_ids": tokens, "attention_mask": tokens.clone()}
        return example, batch | {1: length}
    if takes == "image":
        size = getattr(config, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(_BATCH, config.num_channels, height, width)}, batch
    shape: tuple[int, ...] = (_SECOND,)
    if architecture.name == "WhisperEncoder":
        shape = (config.num_mel_bins, 2 * config.max_source_positions)
    elif architecture.name.startswith("AST"):
        shape = (config.max_length, config.num_mel_bins)
    return {str(module.main_input_name): torch.zeros(_BATCH, *shape)}, batch


def _longest(config: Any) -> int | None:
    """The maximum text length, or None if it is too long to build for by default."""
    longest = int(getattr(config, "max_position_embeddings", None) or _MAX_LENGTH)
    if config.model_type in _PADDED_POSITIONS:
        longest -= int(config.pad_token_id) + 1
    return longest if longest <= _LONG else None


def _image_size(module: nn.Module, architecture: Architecture) -> tuple[int, int, int]:
    config = architecture.config
    usual = getattr(module, "default_cfg", {}).get("input_size")  # timm's
    size = 299 if architecture.name == "inception_v3" else 224
    channels, height, width = usual or (3, size, size)
    asked = config.get("img_size") or config.get("image_size")
    if isinstance(asked, int):
        height = width = asked
    return int(config.get("in_chans", channels)), height, width
