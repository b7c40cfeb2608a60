"""Formats of sources, and of the data submitted with them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from farm.specs import architectures
from farm.specs.values import Value
from farm.specs.words import AnyCase, Folded


class SourceFormat(Folded):
    """The format of what the user submits."""

    ONNX = "onnx"
    PT2 = "pt2"  #: a ``torch.export`` program
    TORCHSCRIPT = "torchscript"
    SAVEDMODEL = "savedmodel"  #: of TensorFlow 2, a folder as a pack
    SAFETENSORS = "safetensors"  #: weights, of an architecture that the request names


#: Formats that PyTorch runs: their weights can be pruned.
MODULES = (SourceFormat.PT2, SourceFormat.SAFETENSORS)


class DataKind(StrEnum):
    """On which data something was found."""

    EVALUATION = "evaluation"  #: the user's, apart from all that the engine was made with
    HELD_OUT = "held-out"  #: a part of the calibration data that the engine wasn't calibrated with
    CALIBRATION = "calibration"  #: the very data that it was calibrated with
    RANDOM = "random"  #: seeded noise


class Architecture(Value):
    """The module that safetensors weights are of."""

    library: Annotated[Literal["transformers", "timm", "torchvision"], AnyCase]
    name: Annotated[str, Field(max_length=100)]  #: the class, or the function that makes the model
    config: dict[str, Any] = {}  #: transformers: the fields of config.json

    @model_validator(mode="after")
    def _known(self) -> Self:
        if reason := architectures.refusal(self.library, self.name, self.config):
            raise ValueError(reason)
        return self


HoldOut = Annotated[int, Field(ge=1, le=4096)] | None


"""The batch size by which a part of the calibration data is held out, to judge engines by; None where
there are evaluation data for that."""
