"""An engine judged beside its source on the same samples: by its outputs, and by labels if there are any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from farm.errors import AccuracyDropped, InvalidData, InvalidModel
from farm.reports.accuracy import Accuracy
from farm.specs.preprocess import Preprocess
from farm.specs.shapes import FixedInputs, Profile, TensorSpec
from farm.specs.tasks import Metric, TaskOptions
from workers.inputs.batch import Batch
from workers.inputs.samples import (
    LABEL,
    Arrays,
    Runnable,
    check_labels,
    check_samples,
    largest,
    open_samples,
)
from workers.measure.accuracy import OutputComparison, in_task
from workers.measure.task import TaskJudge

Array = NDArray[np.generic]

#: Of labels; each sample counts them all.
_MOST_CLASSES = 100_000


def labelled(
    path: Path,
    fixed: FixedInputs,
    inputs: Sequence[TensorSpec],
    profile: Profile,
    batch: Batch,
    metric: Metric | None,
    *,
    judged: bool,
    preprocess: Preprocess | None = None,
) -> tuple[Arrays, Arrays]:
    """Evaluation data: the samples and their labels, which are needed if they are to judge.

    Raises:
        InvalidData
    """
    arrays = open_samples(path, fixed, preprocess=preprocess, inputs=inputs)
    samples = check_samples(arrays, inputs, profile)
    labels = check_labels(arrays, batch.count(samples), metric)
    if judged and not labels:
        raise InvalidData(
            "the accuracy drop can't be judged: the evaluation data hold no 'label'",
            hint="add the array 'label' with a class index per sample, or leave out max_drop",
        )
    return samples, labels


def compare(
    source: Runnable,
    subject: Runnable,
    samples: Arrays,
    labels: Arrays,
    batch: Batch,
    metric: Metric | None,
    options: TaskOptions,
    outputs: Sequence[TensorSpec] = (),
) -> Accuracy:
    """The figures of an engine beside its source's.

    Parameters:
        metric: of the task, for labels; top-1 by default.
        outputs: as the graph declares them; sizes that it fixes don't depend on the data.

    Raises:
        AccuracyDropped: outputs aren't finite where the source's are.
        InvalidModel: the engine's outputs have other types or shapes.
        InvalidData: the data don't fit the model or the metric.
    """
    judge = judge_of(labels, metric, options)
    classes = labels[LABEL] if labels and judge is None else None
    varying: dict[str, int] = {}
    while True:
        comparison = OutputComparison(
            batch_axes=batch.output_axes,
            labels=classes,
            varying=dict(varying),
        )
        for arrays in batch.split(samples, batch.opt, smallest=batch.min):
            expected, actual = source.run(arrays), subject.run(arrays)
            _check_outputs(expected, actual, outputs)
            start, count = comparison.samples, batch.count(arrays)
            comparison.add(expected, actual, count)
            if judge:
                given = {name: each[start : start + count] for name, each in labels.items()}
                of_source, of_engine = (_by_sample(o, batch, count) for o in (expected, actual))
                judge.add(of_source, of_engine, given)
        if comparison.varying == varying:
            break
        varying, judge = comparison.varying, judge_of(labels, metric, options)
    _refuse_unfit(comparison, samples, batch)
    accuracy = comparison.found()
    never = {spec.name for spec in outputs if 0 in spec.shape}
    left = [name for name in accuracy.all_empty if name not in never]
    accuracy = accuracy.model_copy(update={"all_empty": left})
    if judge:
        told = in_task(accuracy.outputs, judge.read)
        accuracy = accuracy.model_copy(update={"task": judge.found(), "outputs": told})
    if classes is not None and accuracy.task is None:
        raise InvalidData(
            f"there are labels of shape {list(classes.shape)}, with classes up to {largest(classes)}, "
            "but no output has classes of that shape, and as many",
            hint="labels need an output of scores [samples, classes] or [samples, classes, …], or of "
            "integers of the labels' own shape; for a model that isn't a classifier choose its metric, or "
            "leave 'label' out",
        )
    return accuracy


def judge_of(labels: Arrays, metric: Metric | None, options: TaskOptions) -> TaskJudge | None:
    """What judges the task, unless it is the top-1 of whichever output has classes."""
    metric = metric or Metric.TOP1
    if not labels or (metric is Metric.TOP1 and options.output is None):
        return None
    label = labels[LABEL]
    of_classes = metric in (Metric.MIOU, Metric.F1) and label.size
    classes = largest(label) + 1 if of_classes else 0
    if classes > _MOST_CLASSES:
        raise InvalidData(
            f"'label' has the class {classes - 1}",
            hint=f"classes count from 0, and are below {_MOST_CLASSES}; padding is below 0",
        )
    return TaskJudge(metric=metric, options=options, classes=classes)


def _by_sample(outputs: Arrays, batch: Batch, count: int) -> Arrays:
    """The outputs that have the samples along an axis, with that axis first."""
    found: Arrays = {}
    for name, array in outputs.items():
        axis = batch.axis_of_output(name)
        if axis is not None and array.ndim > axis and array.shape[axis] == count:
            found[name] = np.moveaxis(array, axis, 0)
    return found


def _refuse_unfit(comparison: OutputComparison, samples: Arrays, batch: Batch) -> None:
    if comparison.samples == 0:
        raise InvalidData(
            f"{batch.count(samples)} samples don't fill the model's smallest batch of {batch.min}",
            hint=f"pass at least {batch.min} samples",
        )
    if comparison.not_finite:
        raise AccuracyDropped(
            f"{comparison.not_finite} of the outputs are NaN or infinite in the engine or in the source, and "
            "not the same in the other",
            hint="choose bf16 or fp32, or for int8 a GPU that has bf16 (sm_80 and later): values of this "
            "model leave the range of fp16",
        )


def _check_outputs(expected: Arrays, actual: Arrays, outputs: Sequence[TensorSpec]) -> None:
    """Check types, ranks and the sizes that the graph fixes.

    Other sizes may depend on the data, and so on rounding. Runtimes choose widths of their own for floats
    and for integers.
    """
    fixed = {spec.name: spec.shape for spec in outputs}
    for name, array in expected.items():
        made = actual.get(name)
        if made is None or not _is_like(array, made, fixed.get(name, ())):
            raise InvalidModel(
                f"the source's output {name!r} is {_told(array)}, and the engine's outputs are "
                f"{ ({n: _told(a) for n, a in actual.items()}) }",
                hint="this is the farm's fault, or the runtime's: report it with the model; until then "
                "leave that output out of the model",
            )


def _is_like(array: Array, made: Array, declared: Sequence[int | str]) -> bool:
    if array.ndim != made.ndim or (array.dtype.kind in "fV") != (made.dtype.kind in "fV"):
        return False
    sizes = zip(declared, array.shape, made.shape, strict=False)
    return all(of_made == size for size, of_source, of_made in sizes if size == of_source)


def _told(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
