"""How images become a model's input: resized, cropped, scaled, normalised, laid out.

The order of the steps, and how sizes are rounded, are those of torchvision's ``Resize``, ``CenterCrop``,
``ToTensor`` and ``Normalize``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from farm.specs.samples import Head, Refusal, given_as
from farm.specs.shapes import TensorSpec
from farm.specs.values import Value
from farm.specs.words import AnyCase, lowered

#: Of an image's side, before and after: more than any model takes.
MOST_SIDE = 8192
_Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_ByChannel = Annotated[tuple[_Finite, ...], Field(min_length=1, max_length=3)]

Layout = Literal["nchw", "nhwc", "nhw"]
Channels = Literal["rgb", "bgr", "gray"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


class Preprocess(Value):
    """What is done to each image, in this order."""

    input: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="the input that images are for; by default the only one of their rank"
    )
    exif: bool = Field(True, description="turn images upright by their EXIF orientation")
    channels: Annotated[Channels, AnyCase] = "rgb"
    resize: _Side | tuple[_Side, _Side] | None = Field(
        None, description="the shorter side's length; or height and width"
    )
    interpolation: Annotated[Interpolation, AnyCase] = Field(
        "bilinear", description="of `resize`, with antialiasing"
    )
    crop: _Side | tuple[_Side, _Side] | None = Field(
        None,
        description="the centre's side; or height and width. Smaller images are padded with zeros",
    )
    scale: _Finite | None = Field(
        None, description="what values of 0 to 255 are multiplied by: 1/255, but 1 for uint8"
    )
    mean: _ByChannel | None = Field(
        None, description="subtracted after `scale`, by channel in the order of `channels`"
    )
    std: _ByChannel | None = Field(None, description="divided by, after `mean`")
    layout: Annotated[Layout, AnyCase] = "nchw"
    dtype: Annotated[Literal["float32", "float16", "uint8"], AnyCase] = "float32"
    labels: Annotated[Literal["file", "folders", "none"], AnyCase] | None = Field(
        None,
        description="where classes come from: by default a labels file in the tar, else its folders if "
        "all images are in two or more",
    )

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_for_all(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int | float) else given

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        count = self.channel_count
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, count):
                raise ValueError(
                    f"{name} has {len(values)} values, but {self.channels} has {count} channels"
                )
        if self.layout == "nhw" and self.channels != "gray":
            raise ValueError("the layout nhw has no axis for channels: it takes channels gray")
        if self.dtype == "uint8" and (self.scale, self.mean, self.std) != (None, None, None):
            raise ValueError("scale, mean and std make floats: leave them out for the dtype uint8")
        if self.std is not None and 0 in self.std:
            raise ValueError("std is divided by, so it can't be 0")
        most = 65504.0 if self.dtype == "float16" else 3.4e38
        ends = [self.value(level, at) for level in (0, 255) for at in range(count)]
        if not all(isfinite(one) and abs(one) <= most for one in ends):
            raise ValueError(f"scale, mean and std give values that {self.dtype} can't hold")
        return self

    @property
    def channel_count(self) -> int:
        return 1 if self.channels == "gray" else 3

    def value(self, level: int, channel: int) -> float:
        """What a channel's 0 to 255 becomes."""
        if self.dtype == "uint8":
            return float(level)
        scaled = level / 255 if self.scale is None else level * self.scale
        mean, std = self.mean or (0.0,), self.std or (1.0,)
        return (scaled - mean[channel % len(mean)]) / std[channel % len(std)]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of what an image of this size becomes."""
        if self.crop is not None:
            return _both(self.crop)
        return self.resized(height, width)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """The height and width that every image becomes; None if that depends on the image's."""
        if self.crop is not None:
            return _both(self.crop)
        return self.resize if isinstance(self.resize, tuple) else None

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width after ``resize``: of one number, the longer side is rounded down."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = sorted((height, width))
        longer = int(self.resize * long / short)
        return (self.resize, longer) if height <= width else (longer, self.resize)

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """A sample's shape."""
        if self.layout == "nhw":
            return height, width
        count = self.channel_count
        return (count, height, width) if self.layout == "nchw" else (height, width, count)

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON."""
        return self.model_dump(mode="json", exclude_defaults=True)


def _both(side: int | tuple[int, int]) -> tuple[int, int]:
    return side if isinstance(side, tuple) else (side, side)


_IMAGENET: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop": 224,
}
#: By name, the evaluation transforms of well-known weights.
PRESETS: Mapping[str, Preprocess] = {
    # torchvision's IMAGENET1K_V1: ResNet, VGG, MobileNet v2 and most others.
    "imagenet": Preprocess(resize=256, **_IMAGENET),
    # torchvision's IMAGENET1K_V2.
    "imagenet-v2": Preprocess(resize=232, **_IMAGENET),
    # OpenAI's CLIP at 224 pixels.
    "clip": Preprocess(
        resize=224,
        crop=224,
        interpolation="bicubic",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    # Google's ViT: pixels in -1 to 1.
    "vit": Preprocess(resize=(224, 224), mean=(0.5,), std=(0.5,)),
}


def _of_preset(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    if lowered(given) not in PRESETS:
        raise ValueError(f"there is no preset {given[:60]!r}: choose of {', '.join(PRESETS)}")
    return PRESETS[lowered(given)]


#: A preset's name stands for its figures.
Preprocessing = Annotated[
    Preprocess,
    BeforeValidator(
        _of_preset,
        json_schema_input_type=Preprocess
        | Annotated[str, Field(json_schema_extra={"enum": list(PRESETS)})],
    ),
]


def image_input(
    preprocess: Preprocess, inputs: Sequence[TensorSpec], others: Collection[str], error: Refusal
) -> TensorSpec:
    """The input that images are for.

    Parameters:
        others: inputs that have arrays of their own.
    """
    left = [spec for spec in inputs if spec.name not in others]
    rank = 3 if preprocess.layout == "nhw" else 4
    named = [spec for spec in left if spec.name == preprocess.input]
    found = named or ([] if preprocess.input else [s for s in left if len(s.shape) == rank])
    if len(found) == 1:
        return found[0]
    if len(left) == 1 and preprocess.input is None:
        return left[0]
    names = ", ".join(map(repr, (spec.name for spec in left))) or "none"
    told = f"no input {preprocess.input!r}" if preprocess.input else "several inputs for images"
    raise error(
        f"the model has {told}: without an array of their own in the tar are {names}",
        hint="name the one that images are for, preprocess.input, and add NAME.npy to the tar for each other",
    )


def check_fits(
    preprocess: Preprocess, spec: TensorSpec, size: tuple[int, int] | None, error: Refusal
) -> Head:
    """Refuse images that don't fit their input; return the head of one sample's array.

    Parameters:
        size: height and width, if they are known.
    """
    made = (-1, *(preprocess.shape(*size) if size else preprocess.shape(-1, -1)))
    wants = given_as(spec)
    if wants != preprocess.dtype:
        raise error(
            f"input {spec.name!r} takes {spec.dtype}, but images become {preprocess.dtype}",
            hint="set dtype in preprocess to the input's, or submit the model with another input type",
        )
    is_like = len(made) == len(spec.shape) and all(
        not isinstance(size, int) or axis == 0 or -1 in (size, made[axis]) or size == made[axis]
        for axis, size in enumerate(spec.shape)
    )
    if not is_like:
        shown = ", ".join("N" if n == 0 else "?" if s < 0 else str(s) for n, s in enumerate(made))
        raise error(
            f"input {spec.name!r} takes {list(spec.shape)}, but images become [{shown}]",
            hint="set layout, channels, resize and crop in preprocess as the model was trained with",
        )
    return Head(preprocess.dtype, made)
