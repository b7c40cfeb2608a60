"""What looks wrong with samples, in words. Each is a guess from the values alone, and says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from farm.specs.shapes import TensorSpec
from workers.inputs.batch import Arrays, Batch

FEW = 32
#: Samples that are looked at, and read at once.
_MOST, _AT_ONCE = 1024, 32
_PARTS = 64  #: of a sample, whose means are compared
#: Two samples are alike when no part differs by more than this share of the parts' spread.
_ALIKE = 0.02
_MANY_ALIKE, _MUCH_PADDING, _WHOLE = 0.1, 0.6, 0.99
_CHANNELS = (1, 3, 4)
#: Samples that a channel must be the same in.
_FEWEST_VARIED = 8
#: So many may always be the same, as the corners of handwritten digits are.
_FEW_FEATURES = 0.25


def advice(samples: Arrays, inputs: Sequence[TensorSpec], batch: Batch) -> list[str]:
    """Warnings of calibration or evaluation data: few or alike samples, channels without change,
    raw pixels, padding."""
    count = batch.count(samples)
    found = []
    if count < FEW:
        found.append(
            f"only {count} samples: figures from them are uncertain; {FEW} are few, and 256 or more better"
        )
    for spec in inputs:
        if batch.axis_of(spec.name) == 0:
            seen = _Seen()
            for start in range(0, min(count, _MOST), _AT_ONCE):
                seen.add(np.asarray(samples[spec.name][start : min(start + _AT_ONCE, _MOST)]))
            found += [f"the data for input {spec.name!r} {one}" for one in seen.told()]
    return found


class _Seen:
    """Accumulates the samples of one input."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()
        self._kind = ""
        self._low, self._high = np.inf, -np.inf
        self._values = self._whole = self._padding = 0
        #: By channel of an image, or by feature.
        self._least = self._most = np.zeros(0)
        self._parts: list[NDArray[np.float64]] = []

    def add(self, array: NDArray[np.generic]) -> None:
        if not array.size:
            return
        self._shape, self._kind = array.shape[1:], array.dtype.kind
        rows = array.reshape(len(array), -1).astype(np.float64)
        self._low = min(self._low, float(rows.min()))
        self._high = max(self._high, float(rows.max()))
        self._see_channels(array)
        self._values += rows.size
        self._whole += int((rows == np.rint(rows)).sum())
        # How many values at a row's end are the same.
        differs = rows[:, ::-1] != rows[:, -1:]
        same = np.where(differs.any(axis=1), differs.argmax(axis=1), rows.shape[1])
        self._padding += int(same[same > 1].sum())
        pieces = np.array_split(rows, min(_PARTS, rows.shape[1]), axis=1)
        self._parts.append(np.stack([piece.mean(axis=1) for piece in pieces], axis=1))

    def _see_channels(self, array: NDArray[np.generic]) -> None:
        axis = self._channel_axis()
        if axis is None or array.dtype.kind != "f":
            return
        by_channel = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(np.float64)
        least, most = by_channel.min(axis=1), by_channel.max(axis=1)
        is_first = not self._least.size
        self._least = least if is_first else np.minimum(self._least, least)
        self._most = most if is_first else np.maximum(self._most, most)

    def _channel_axis(self) -> int | None:
        """Of a batch of images, or of rows of features."""
        if len(self._shape) == 1:
            return 1
        if not self._is_image():
            return None
        return 1 if self._shape[0] in _CHANNELS else 3

    def _is_image(self) -> bool:
        return len(self._shape) == 3 and (
            self._shape[0] in _CHANNELS or self._shape[-1] in _CHANNELS
        )

    def _constant(self) -> str | None:
        """The channels with one value in all samples."""
        same = np.flatnonzero(self._least == self._most)
        what = "features" if len(self._shape) == 1 else "channels"
        few = _FEW_FEATURES * self._least.size if what == "features" else 0
        if same.size <= few or sum(map(len, self._parts)) < _FEWEST_VARIED:
            return None
        shown = ", ".join(map(str, same[:5])) + (", …" if same.size > 5 else "")
        return (
            f"is the same in all samples for {same.size} of {self._least.size} {what} ({shown}): nothing is "
            "learned of what they do"
        )

    def told(self) -> Iterator[str]:
        if not self._values:
            return
        constant = self._constant()
        if constant:
            yield constant
        alike, of = self._alike()
        if alike >= max(2, _MANY_ALIKE * of):
            yield (
                f"looks repetitive: {alike} of {of} samples are nearly equal to an earlier one; varied ones "
                "tell more"
            )
        in_bytes = self._low >= 0 and 50 < self._high <= 255
        if (
            self._kind == "f"
            and self._is_image()
            and in_bytes
            and self._whole >= _WHOLE * self._values
        ):
            yield (
                f"looks like raw pixels, {self._low:g} to {self._high:g} in whole numbers: right only if the "
                "model scales them itself, else preprocess as in training"
            )
        is_tokens = self._kind in "iu" and len(self._shape) == 1 and self._shape[0] > 1
        if is_tokens and self._low < self._high and self._padding >= _MUCH_PADDING * self._values:
            yield (
                f"looks like padding for {self._padding / self._values:.0%}: ranges and figures are mostly "
                "those of padding; cut samples to what they hold"
            )

    def _alike(self) -> tuple[int, int]:
        parts = np.concatenate(self._parts)
        if parts.shape[1] < 2 or self._kind == "b":
            return 0, len(parts)
        spread = float(parts.std())
        found = 0
        for number in range(1, len(parts)):
            apart = np.abs(parts[:number] - parts[number]).max(axis=1).min()
            found += bool(apart <= _ALIKE * spread)
        return found, len(parts)
