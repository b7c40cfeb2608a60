"""One untrusted image, from its file's bytes to a sample, by Pillow.

Sizes are checked before anything is decoded. The resulting values are exact: each is looked up among the 256
that a channel can become, which are computed in float64 and rounded once.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from farm.errors import InvalidData
from farm.specs.preprocess import MOST_SIDE, Preprocess

#: Formats that Pillow may parse, of the many that it knows.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
#: Of an image, as it is and resized: 200 MB in RGB.
MOST_PIXELS = 64 << 20
#: Larger ones are decoded one at a time, so that threads don't multiply their memory.
_LARGE_PIXELS = 8 << 20
_ALONE = Lock()
# Pillow's own limit would warn at less, and allow more.
Image.MAX_IMAGE_PIXELS = None
_HINT = "remove it from the tar, or replace it"
_SWAPPED = (5, 6, 7, 8)  #: EXIF orientations that turn an image by a right angle
_ORIENTATION = 0x0112
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_GRAY16 = ("I;16", "I;16L", "I;16B", "I;16N")


def size_of(raw: bytes, name: str, *, exif: bool) -> tuple[int, int]:
    """An image's height and width, by its header.

    Raises:
        InvalidData
    """
    with _behind(name):
        image = _opened(raw, name)
        is_swapped = exif and image.getexif().get(_ORIENTATION) in _SWAPPED
        return (image.width, image.height) if is_swapped else (image.height, image.width)


def pixels(raw: bytes, name: str, how: Preprocess) -> NDArray[np.uint8]:
    """An image's values after cropping, [height, width, channels].

    Raises:
        InvalidData: it is damaged, larger than ``MOST_PIXELS``, animated, or of another kind.
    """
    with _behind(name):
        image = _opened(raw, name)
        is_large = image.width * image.height > _LARGE_PIXELS
        with _ALONE if is_large else nullcontext():
            return _pixels(image, name, how)


def _pixels(image: Image.Image, name: str, how: Preprocess) -> NDArray[np.uint8]:
    image.load()
    if how.exif:
        image = ImageOps.exif_transpose(image)
    image = _in_channels(image, name, how)
    height, width = how.resized(image.height, image.width)
    if height * width > MOST_PIXELS or max(height, width) > MOST_SIDE * 4:
        raise _refused(name, f"would be {height} × {width} pixels after resizing")
    if (height, width) != (image.height, image.width):
        image = image.resize((width, height), Image.Resampling[how.interpolation.upper()])
    array = np.asarray(image, np.uint8).reshape(height, width, how.channel_count)
    return _cropped(array, how.size(height, width))


def table(how: Preprocess) -> NDArray[Any]:
    """What each channel's 256 values become, [channels, 256]."""
    values = [[how.value(n, at) for n in range(256)] for at in range(how.channel_count)]
    return np.array(values, np.float64).astype(how.dtype)


def write(values: NDArray[np.uint8], table: NDArray[Any], how: Preprocess, into: Any) -> None:
    """Write an image's values to its sample, an array of ``how.shape``."""
    for at in range(how.channel_count):
        # The last channel of BGR is red.
        plane = values[..., how.channel_count - 1 - at if how.channels == "bgr" else at]
        if how.layout == "nchw":
            np.take(table[at], plane, out=into[at])
        elif how.layout == "nhwc":
            into[..., at] = table[at][plane]
        else:
            np.take(table[at], plane, out=into)


def _opened(raw: bytes, name: str) -> Image.Image:
    """The image, of which only the header was read."""
    _refuse_large_webp(raw, name)
    image = Image.open(io.BytesIO(raw), formats=_FORMATS)
    _check_size(image.width, image.height, name)
    # Phones put a second image, such as a depth map, into a JPEG.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise _refused(name, "is animated")
    return image


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MOST_PIXELS or not width * height:
        raise _refused(name, f"has {height} × {width} pixels, of at most {MOST_PIXELS >> 20} Mi")


def _refuse_large_webp(raw: bytes, name: str) -> None:
    """Pillow takes memory for a WebP's whole canvas before it tells its size."""
    if raw[:4] != b"RIFF" or raw[8:12] != b"WEBP":
        return
    kind, at = raw[12:16], raw[20:30]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(at[n : n + 3], "little") for n in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(at[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(at[n : n + 2], "little") & 0x3FFF for n in (6, 8))
    _check_size(width, height, name)


def _in_channels(image: Image.Image, name: str, how: Preprocess) -> Image.Image:
    """The image in RGB or gray, 8 bits a channel; alpha is dropped, as torchvision's loader does."""
    if image.mode in _GRAY16:
        # The upper byte, as Pillow takes of 16-bit colours.
        upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        image = Image.fromarray(upper)
    elif image.mode not in _MODES:
        raise _refused(name, f"has pixels of the kind {image.mode!r}")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if how.channels == "gray" else "RGB")


def _cropped(array: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The centre; what is smaller is padded with zeros, one more at the end where it is odd."""
    short = [max(0, wanted - there) for wanted, there in zip(size, array.shape, strict=False)]
    if any(short):
        array = np.pad(array, [*((n // 2, (n + 1) // 2) for n in short), (0, 0)])
    # Halves are rounded to even, as Python does.
    top, left = (
        round((there - wanted) / 2) for there, wanted in zip(array.shape, size, strict=False)
    )
    return array[top : top + size[0], left : left + size[1]]


def _refused(name: str, why: str) -> InvalidData:
    return InvalidData(f"the image {name[:200]!r} {why}", hint=_HINT)


@contextmanager
def _behind(name: str) -> Iterator[None]:
    """Whatever Pillow raises over a file is a refusal of it."""
    try:
        yield
    except (InvalidData, MemoryError):
        raise
    except Exception as err:
        lines = str(err).strip().splitlines()
        told = lines[0][:200] if lines else type(err).__name__
        if isinstance(err, UnidentifiedImageError):
            told = f"it is none of {', '.join(_FORMATS)}"
        raise _refused(name, f"can't be decoded: {told}") from err
