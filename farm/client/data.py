"""Calibration and evaluation data, checked against the model's inputs before anything is uploaded.

Only what is certain is refused: what the source tells without being loaded, in the words that the job would
use. Values, and sources whose inputs aren't told, are checked by the jobs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from farm.errors import DataRefused
from farm.formats import array_files, calibration_caches, image_tars, onnx_interface, packs
from farm.formats.archives import Malformed
from farm.specs import digests
from farm.specs.batch_axes import batch_symbol, named_axis
from farm.specs.preprocess import Preprocess, check_fits, image_input
from farm.specs.samples import (
    LABEL,
    LABELS,
    Head,
    check_counts,
    check_labels,
    check_names,
    check_sizes,
    check_type,
    named,
)
from farm.specs.shapes import ShapeRange, TensorSpec
from farm.specs.source import SourceFormat
from farm.specs.tasks import Metric

Inputs = Sequence[TensorSpec]
#: The format of TensorRT's calibration caches, and how each begins.
CACHE, _CACHE_START = "tensorrt-cache", b"TRT-"


def inputs_of(model: Path, format: SourceFormat) -> Inputs | None:
    """The inputs that a source tells without being loaded; None if it doesn't."""
    return onnx_interface.inputs(model) if format is SourceFormat.ONNX and model.is_file() else None


def check(
    path: Path,
    inputs: Inputs | None = None,
    *,
    profiles: Sequence[Mapping[str, Any]] = (),
    fixed: Collection[str] = (),
    metric: Metric | None = None,
    preprocess: Preprocess | None = None,
) -> None:
    """Refuse data that the jobs would.

    Parameters:
        preprocess: what is done to images.
        profiles: as requested; the first one counts.
        fixed: the inputs that are fixed, which data may have or not.
        metric: that the labels are for.

    Raises:
        DataRefused
    """
    taken = [spec for spec in inputs or () if spec.name not in fixed]
    image_tars.check_kind(path, preprocess, DataRefused)
    try:
        if preprocess is None:
            heads = array_files.heads(path)
        else:
            heads = _of_images(path, preprocess, taken if inputs is not None else None)
    except Malformed as err:
        raise DataRefused(
            f"the data can't be read: {err}",
            hint="save plain arrays with numpy.savez(path, input_name=array), or pack images: tar -cf "
            "images.tar FOLDER",
        ) from err
    if inputs is None:
        return
    _check(
        {name: head for name, head in heads.items() if name not in fixed},
        taken,
        profiles[0] if profiles else {},
        metric,
    )


def calibration_format(given: str | Path) -> str:
    """What calibration data are, by the file: a cache begins as no others do, and a digest tells nothing."""
    if digests.means(str(given)) or not Path(given).is_file():
        return "samples"
    with Path(given).open("rb") as file:
        return CACHE if file.read(len(_CACHE_START)) == _CACHE_START else "samples"


def check_cache(path: Path) -> None:
    """Refuse a calibration cache that the job would.

    Raises:
        DataRefused
    """
    try:
        calibration_caches.read(path)
    except Malformed as err:
        raise DataRefused(
            f"the calibration cache can't be read: {err}",
            hint="pass the file that TensorRT's calibrator wrote, or calibration data instead",
        ) from err


def are_images(path: Path) -> bool:
    """Whether data are a tar of images."""
    return packs.is_pack(path)


def _of_images(path: Path, how: Preprocess, inputs: Inputs | None) -> dict[str, Head]:
    """The heads of what a tar of images gives, as far as they are known without decoding one."""
    tar = image_tars.read(path, how)
    found = image_tars.heads(path, tar)
    labels, _ = image_tars.labels_of(path, tar, how)
    if labels is not None and not any(isinstance(one, list | float) for one in labels):
        found[LABEL] = Head("int64", (len(labels),))
    if inputs is None:
        return found
    spec = image_input(how, inputs, found.keys(), DataRefused)
    size = how.fixed_size
    head = check_fits(how, spec, size, DataRefused)
    known = head.shape[1:]
    if size is None:  # by the model's own sizes: those that images become are for the jobs to check
        wanted = (axis if isinstance(axis, int) else 1 for axis in spec.shape[1:])
        known = tuple(want if have < 0 else have for have, want in zip(known, wanted, strict=True))
    return found | {spec.name: Head(head.dtype, (len(tar.images), *known))}


def _check(
    given: Mapping[str, Head], inputs: Inputs, profile: Mapping[str, Any], metric: Metric | None
) -> None:
    heads = named(given, inputs)
    labels = {name: heads.pop(name) for name in LABELS if name in heads}
    check_names(heads, inputs, DataRefused)
    symbol = batch_symbol(inputs)
    axes = {spec.name: named_axis(spec.shape, symbol) if symbol else None for spec in inputs}
    for spec in inputs:
        # Without a dynamic batch the first axis may hold any number of samples.
        axis = axes[spec.name] if symbol else 0
        check_type(heads[spec.name], spec, axis, DataRefused)
        if axes[spec.name] is not None or symbol is None:
            _check_sizes(heads[spec.name], spec, axis, profile.get(spec.name))
    count = check_counts(heads, axes, DataRefused)
    if LABEL in labels and count is not None:
        check_labels(labels, count, DataRefused, metric)


def _check_sizes(head: Head, spec: TensorSpec, batch_axis: int | None, asked: Any) -> None:
    """The axes of one size, and those that the profile gives a range, but the batch."""
    known = {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, int)}
    try:
        shapes = ShapeRange.model_validate(asked) if asked else None
    except ValueError:
        return  # the request is refused for it
    if shapes is not None and len(shapes.opt) == len(spec.shape):
        axes = [axis for axis in range(len(spec.shape)) if axis != batch_axis]
    else:
        sizes = tuple(known.get(axis, 0) for axis in range(len(spec.shape)))
        shapes = ShapeRange(min=sizes, opt=sizes, max=sizes)
        axes = [axis for axis in known if axis != batch_axis]
    check_sizes(head, spec.name, shapes, axes, DataRefused)
