"""Calibration and evaluation data: arrays by input name, samples along the batch axis.

Arrays have the model's layout. An input without a batch, such as a scalar or a table, is one array for
all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from farm.errors import InvalidData
from farm.formats import image_tars, packs
from farm.formats.archives import Malformed, behind
from farm.specs.counted import counted
from farm.specs.preprocess import Preprocess
from farm.specs.samples import BF16 as BF16
from farm.specs.samples import LABEL as LABEL
from farm.specs.samples import (
    LABELS,
    Head,
    check_counts,
    check_names,
    check_sizes,
    check_type,
    named,
)
from farm.specs.samples import check_labels as check_label_heads
from farm.specs.samples import given_as as given_as
from farm.specs.shapes import FixedInputs, Profile, TensorSpec
from farm.specs.source import DataKind
from farm.specs.tasks import Metric
from workers.inputs.batch import Arrays as Arrays
from workers.inputs.batch import Batch
from workers.inputs.profiles import shapes_at
from workers.inputs.standins import Runnable as Runnable
from workers.inputs.standins import random_arrays as random_arrays
from workers.inputs.standins import tried
from workers.inputs.stored import Column, columns

#: For random data, so that a job is reproducible.
SEED = 0
_AT_ONCE_BYTES = 1 << 20


def read_samples(path: Path, fixed: FixedInputs | None = None) -> Arrays:
    """Read a ``.npz``, ``.npy`` or ``.safetensors`` file, detected by content. Pickles are never run.

    Parameters:
        fixed: inputs that the model no longer takes. The data may omit them; if present, they must have
            these values.

    Raises:
        InvalidData: the file is neither, is damaged, holds Python objects, or has other values for a fixed
            input.
    """
    if packs.is_pack(path):
        raise InvalidData(
            "the data is a tar, and arrays are needed",
            hint="save plain arrays with numpy.savez(path, input_name=array)",
        )
    return {name: _whole(array) for name, array in open_samples(path, fixed).items()}


def open_samples(
    path: Path,
    fixed: FixedInputs | None = None,
    *,
    preprocess: Preprocess | None = None,
    inputs: Sequence[TensorSpec] = (),
) -> Arrays:
    """The same, but large arrays are a ``Column``, which reads the samples that a batch takes; or a tar of
    images with what is done to them.

    Parameters:
        inputs: the model's, of which one takes the images.

    Raises:
        InvalidData: as ``read_samples``; or images that don't fit the inputs.
    """
    arrays = _read(path, preprocess, inputs)
    for name in (fixed or {}).keys() & arrays.keys():
        if not _is_always(_whole(arrays.pop(name)), np.asarray((fixed or {})[name])):
            raise InvalidData(
                f"the input {name!r} is fixed to {(fixed or {})[name]}, but the data has other values "
                "for it",
                hint=f"omit {name!r} from the data, or submit one build per value",
            )
    return arrays


def _is_always(array: NDArray[np.generic], value: NDArray[np.generic]) -> bool:
    """Whether an array is this value, or this value for each sample."""
    try:
        return bool((array == np.broadcast_to(value, array.shape)).all())
    except ValueError:
        return False


def _read(path: Path, preprocess: Preprocess | None, inputs: Sequence[TensorSpec]) -> Arrays:
    image_tars.check_kind(path, preprocess, InvalidData)
    if preprocess is None:
        with _behind_data():
            return cast(Arrays, columns(path))
    try:
        from workers.inputs import images  # Pillow, which few jobs need
    except ImportError as err:
        raise InvalidData(
            f"this worker can't read images: {err}",
            hint="on the workers: pip install pillow; or save the images as arrays: numpy.savez",
        ) from err
    with _behind_data():
        return cast(Arrays, images.opened(path, preprocess, inputs))


def _whole(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """All of an array that may still be on disk.

    Raises:
        InvalidData: its file is damaged.
    """
    with _behind_data():
        return np.asarray(array)


@contextmanager
def _behind_data() -> Iterator[None]:
    """Turn every error of reading data into a refusal of it."""
    try:
        with behind():
            yield
    except Malformed as err:
        raise InvalidData(
            f"the data can't be read: {err}",
            hint="save plain arrays with numpy.savez(path, input_name=array), or pack images: tar -cf "
            "images.tar FOLDER",
        ) from err


def check_samples(arrays: Arrays, inputs: Sequence[TensorSpec], profile: Profile) -> Arrays:
    """Return the arrays of the graph's inputs, checked for names, shapes, dtypes and finite values.

    One array that was saved without a name is the only input's.

    Raises:
        InvalidData: names the input and what to do.
    """
    samples = {name: each for name, each in named(arrays, inputs).items() if name not in LABELS}
    check_names(samples, inputs, InvalidData)
    batch = Batch.of(inputs, profile)
    heads = {name: head_of(array) for name, array in samples.items()}
    for spec in inputs:
        if batch.axis_of(spec.name) != 0:  # shared by all samples, or they aren't in one piece
            _refuse_images(samples[spec.name], spec)
            samples[spec.name] = _whole(samples[spec.name])
        _check_array(samples[spec.name], spec, profile, batch.axis_of(spec.name))
    check_counts(heads, {name: batch.axis_of(name) for name in batch.inputs}, InvalidData)
    return {spec.name: samples[spec.name] for spec in inputs}


def _refuse_images(array: NDArray[np.generic] | Column, spec: TensorSpec) -> None:
    """Images stay in their tar, so their samples are on axis 0."""
    if isinstance(array, Column) and array.is_finite:
        raise InvalidData(
            f"input {spec.name!r} doesn't have its samples on axis 0, where images have them",
            hint="save the images as an array in the input's own layout: numpy.savez",
        )


def head_of(array: NDArray[np.generic]) -> Head:
    return Head(array.dtype.name, array.shape)


def check_labels(arrays: Arrays, count: int, metric: Metric | None = None) -> Arrays:
    """The labels of every sample, or of each of its positions; empty without labels. Large ones stay on disk.

    Raises:
        InvalidData: the labels aren't what the metric takes, or don't cover every sample.
    """
    labels = {name: arrays[name] for name in LABELS if name in arrays}
    if LABEL not in labels:
        return {}
    check_label_heads({n: head_of(a) for n, a in labels.items()}, count, InvalidData, metric)
    for array in labels.values():
        for _ in _parts(array):  # so that none is damaged
            pass
    return labels


def largest(array: NDArray[np.generic]) -> int:
    """The largest of integers that may be on disk; -1 for none."""
    return max((int(part.max()) for part in _parts(array) if part.size), default=-1)


def split(
    samples: Arrays, inputs: Sequence[TensorSpec], profile: Profile, hold_out: int | None
) -> tuple[Arrays, Arrays | None]:
    """Split calibration data: samples to calibrate with, and samples held out to judge engines, if any.

    Parameters:
        hold_out: the batch size of the calibration.
    """
    batch = Batch.of(inputs, profile)
    is_held = _is_held_out(batch.count(samples), max(hold_out, batch.min) if hold_out else None)
    if not is_held.any():
        return samples, None
    return batch.select(samples, ~is_held), batch.select(samples, is_held)


def _is_held_out(count: int, size: int | None) -> NDArray[np.bool_]:
    """Mark the third of every four batches; nothing if there are fewer than three batches.

    Not the last batches: files are often sorted by class.
    """
    if size is None or count < 3 * size:
        return np.zeros(count, bool)
    return np.asarray(np.arange(count) // size % 4 == 2)


def samples_for(
    given: Mapping[str, Path],
    inputs: Sequence[TensorSpec],
    profile: Profile,
    *,
    preprocess: Preprocess | None = None,
    hold_out: int | None = None,
    fixed: FixedInputs | None = None,
    source: Callable[[], Runnable] | None = None,
) -> tuple[Arrays, DataKind]:
    """Samples to run a model on: calibration data, else evaluation data, else random data at the opt shapes.

    Parameters:
        given: a stage's inputs.
        preprocess: what is done to the data if they are images.
        hold_out: the batch size used to hold out calibration data.
        fixed: inputs that the model no longer takes.
        source: loads the model on which random data are tried, so that its outputs are finite.

    Raises:
        InvalidData: the data don't fit the model.
        InvalidModel: the model fails on all random data.
    """
    for kind in (DataKind.CALIBRATION, DataKind.EVALUATION):
        if kind in given:
            arrays = open_samples(given[kind], fixed, preprocess=preprocess, inputs=inputs)
            samples = check_samples(arrays, inputs, profile)
            if kind is DataKind.CALIBRATION:
                samples, _ = split(samples, inputs, profile, hold_out)
            return samples, kind
    shapes = shapes_at(profile, "opt")
    if source is None:
        return random_arrays(inputs, shapes, seed=SEED, profile=profile), DataKind.RANDOM
    return tried(source(), inputs, shapes, seed=SEED, profile=profile)[0], DataKind.RANDOM


def _check_array(
    array: NDArray[np.generic], spec: TensorSpec, profile: Profile, batch_axis: int | None
) -> None:
    head = head_of(array)
    check_type(head, spec, batch_axis, InvalidData)
    others = [axis for axis in range(array.ndim) if axis != batch_axis]
    check_sizes(head, spec.name, profile[spec.name], others, InvalidData)
    bad = _not_finite(array)
    if bad:
        raise InvalidData(
            f"the data for input {spec.name!r} has {counted(bad, 'NaN or infinite value')}",
            hint="remove those samples, or fix the preprocessing",
        )


def check_ids(samples: Arrays, vocabularies: Mapping[str, int]) -> None:
    """Refuse values that aren't in the table that an input's are looked up in.

    Parameters:
        vocabularies: input → the table's size. Negative ids count from its end, as ONNX has it.

    Raises:
        InvalidData: names the input, the value and the table's size.
    """
    for name, size in vocabularies.items():
        if name not in samples or samples[name].dtype.kind not in "iu":
            continue
        for part in _parts(samples[name]):
            outside = part[(part >= size) | (part < -size)]  # type: ignore[operator]
            if outside.size:
                raise InvalidData(
                    f"the data for input {name!r} has the id {outside.flat[0]}, but the model's table for it "
                    f"has {size} rows, 0 to {size - 1}",
                    hint="tokenise the samples with the model's own tokenizer, and pad with an id of its",
                )


def _not_finite(array: NDArray[np.generic]) -> int:
    """How many values are NaN or infinite, from a few samples at a time; all are read, so none is damaged."""
    if isinstance(array, Column) and array.is_finite:
        return 0
    return sum(int((~np.isfinite(part)).sum()) for part in _parts(array))


def _parts(array: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """All values, a few samples at a time."""
    if not array.ndim or not array.size:
        yield np.asarray(array)
        return
    step = max(1, _AT_ONCE_BYTES * len(array) // array.nbytes)
    with _behind_data():
        for start in range(0, len(array), step):
            yield array[start : start + step]
