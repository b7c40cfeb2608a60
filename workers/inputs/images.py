"""Images of a tar as a model's input: decoded when a batch takes them, and never unpacked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farm.errors import InvalidData
from farm.formats import image_tars
from farm.formats.archives import Malformed
from farm.formats.image_tars import ImageTar
from farm.formats.packs import Member
from farm.specs.preprocess import Preprocess, check_fits, image_input
from farm.specs.samples import LABEL
from farm.specs.shapes import TensorSpec
from workers.inputs import decoding
from workers.inputs.stored import Column, columns_in


class Images(Column):
    """Samples on axis 0. Values are always finite, and a damaged image is found when it is read.

    Parameters:
        shape: of each sample.
    """

    is_finite = True

    def __init__(
        self, path: Path, members: Sequence[Member], how: Preprocess, shape: tuple[int, ...]
    ) -> None:
        super().__init__((len(members), *shape), np.dtype(how.dtype))
        self._path, self._members, self._how = path, members, how
        self._table = decoding.table(how)

    def _rows(self, start: int, stop: int) -> NDArray[Any]:
        return self._picked(np.arange(start, stop))

    def _picked(self, which: NDArray[Any]) -> NDArray[Any]:
        numbers = np.flatnonzero(which) if which.dtype == np.bool_ else which.astype(np.int64)
        made = np.empty((len(numbers), *self.shape[1:]), self.dtype)

        def decode(at: int) -> None:
            member = self._members[int(numbers[at])]
            values = decoding.pixels(_read(self._path, member), member.name, self._how)
            decoding.write(values, self._table, self._how, made[at])

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            list(threads.map(decode, range(len(numbers))))
        return made


def _read(path: Path, member: Member) -> bytes:
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.bytes)


def opened(
    path: Path, how: Preprocess, inputs: Sequence[TensorSpec]
) -> dict[str, NDArray[Any] | Column]:
    """A tar's images under their input's name, the arrays beside them, and the labels.

    Parameters:
        inputs: the model's.

    Raises:
        InvalidData: the images don't fit the model.
        Malformed
        OSError
    """
    tar = image_tars.read(path, how)
    spec = image_input(how, inputs, tar.arrays.keys(), InvalidData)
    check_fits(how, spec, how.fixed_size, InvalidData)
    size = how.fixed_size or _common_size(path, tar, how)
    check_fits(how, spec, size, InvalidData)
    image_tars.heads(path, tar)  # refuses what isn't arrays of numbers
    found = columns_in(path, {name: each.offset for name, each in tar.arrays.items()})
    found[spec.name] = Images(path, tar.images, how, how.shape(*size))
    labels, told = image_tars.labels_of(path, tar, how)
    if labels is not None:
        found[LABEL] = _as_array(labels)
    print(
        f"{len(tar.images)} images for input {spec.name!r}, in order of their names; labels: {told}"
    )
    return found


def _common_size(path: Path, tar: ImageTar, how: Preprocess) -> tuple[int, int]:
    """The size that all images have after ``resize``, by their headers."""
    first: tuple[int, int] | None = None
    for member in tar.images:
        image = decoding.size_of(_read(path, member), member.name, exif=how.exif)
        size = how.resized(*image)
        first = first or size
        if size != first:
            raise InvalidData(
                f"the images differ in size: {tar.images[0].name[:200]!r} becomes {list(first)} and "
                f"{member.name[:200]!r} {list(size)}",
                hint="set crop, or both sides of resize, in preprocess",
            )
    assert first is not None
    return first


def _as_array(labels: image_tars.Labels) -> NDArray[Any]:
    """Classes as int64; labels with fractions, of which NaN is padding, as float32.

    Raises:
        Malformed: they aren't numbers, or not of one shape.
    """
    try:
        array = np.asarray(labels)
    except (ValueError, OverflowError) as err:
        raise Malformed("the labels don't have one shape") from err
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise Malformed("the labels aren't numbers")
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
