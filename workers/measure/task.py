"""The task's metric of a source and an engine, from their outputs and the labels, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from farm.errors import InvalidData
from farm.reports.accuracy import Task
from farm.specs.samples import BOXES, LABEL
from farm.specs.tasks import ERRORS, OF_BOXES, Metric, TaskOptions
from workers.measure import bootstrap, confusions, detections, intervals, sums

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]

#: Shares of samples that are right or wrong: where all are right, a bootstrap says nothing.
_SHARES = (Metric.RECALL1, Metric.RECALL5)
#: Each is a sort of all boxes.
_RESAMPLES_OF_BOXES = 200
_TOTALS: Mapping[Metric, Callable[[sums.Rows], NDArray[np.float64]]] = {
    Metric.RMSE: sums.root_ratio
}
#: Means over classes.
_OVER_CLASSES = {Metric.MIOU: confusions.mean_iou, Metric.F1: confusions.f1}


@dataclass(kw_only=True)
class TaskJudge:
    """Accumulates batches of outputs, the samples along axis 0.

    Parameters:
        classes: that the labels have, for metrics over classes whose output is the class itself.
    """

    metric: Metric
    options: TaskOptions
    classes: int = 0
    _output: str | None = None
    _scores: str | None = None  #: of boxes
    _rows: tuple[list[sums.Rows], list[sums.Rows]] = field(default_factory=lambda: ([], []))
    _embeddings: tuple[list[Array], list[Array]] = field(default_factory=lambda: ([], []))
    _labels: list[Array] = field(default_factory=list)
    _matches: tuple[detections.Matches, detections.Matches] | None = None
    _confusions: tuple[confusions.Confusions, confusions.Confusions] | None = None

    def add(self, source: Arrays, engine: Arrays, labels: Arrays) -> None:
        """Add one batch.

        Raises:
            InvalidData: no output fits the labels and the metric, or it has its samples on no axis in this
                batch.
        """
        if self.metric in OF_BOXES:
            self._add_boxes(source, engine, labels)
            return
        label = labels[LABEL]
        if self._output is None:
            self._output = self._chosen(source, label)
        one, other = (self._judged(outputs, label) for outputs in (source, engine))
        if self.metric in _SHARES:
            for kept, array in zip(self._embeddings, (one, other), strict=True):
                kept.append(array)
            self._labels.append(label)
        elif self.metric in _OVER_CLASSES:
            self._add_classes((one, other), label.astype(np.int64))
        else:
            for rows, array in zip(self._rows, (one, other), strict=True):
                rows.append(self._sums(array, label))

    @property
    def read(self) -> set[str | None]:
        """The outputs that the metric reads."""
        return {self._output, self._scores} - {None}

    def _judged(self, outputs: Arrays, label: Array) -> Array:
        """The judged output, which must have one row for each label."""
        assert self._output is not None
        array = outputs.get(self._output)
        if array is None or not self._fits(array, label):
            shape = (
                "no axis of the batch's size" if array is None else f"the shape {list(array.shape)}"
            )
            raise InvalidData(
                f"the output {self._output!r} has {shape} in a batch of {len(label)}, and another in the "
                f"batches before: {self.metric} can't match its rows with labels",
                hint="name another output (--task output=…), or leave the metric out: outputs of sizes that "
                "depend on the data are then compared item by item",
            )
        return array

    def _add_classes(self, outputs: tuple[Array, Array], labels: NDArray[np.int64]) -> None:
        if self._confusions is None:
            of = _OVER_CLASSES[self.metric]
            self._confusions = confusions.Confusions(of=of), confusions.Confusions(of=of)
        for kept, array in zip(self._confusions, outputs, strict=True):
            if array.dtype.kind in "iu":
                # Classes that no label has are one more, which is never right.
                found = np.minimum(array.astype(np.int64), self.classes)
                kept.add(found.reshape(labels.shape), labels, self.classes + 1)
                continue
            _refuse_other_classes(labels, array.shape[1])
            found = np.asarray(array.astype(np.float64).argmax(axis=1), np.int64)
            kept.add(found, labels, array.shape[1])

    def found(self) -> Task:
        """The figures with their intervals; a drop above 0 is always for the worse.

        Raises:
            InvalidData: the labels leave nothing to judge.
        """
        count, before, after = self._resampled()
        ones = np.ones((1, count))
        source, engine = float(before(ones)[0]), float(after(ones)[0])
        if not np.isfinite([source, engine]).all():
            raise InvalidData(
                f"the labels leave nothing to judge by {self.metric}",
                hint=_NOTHING.get(
                    self.metric, "labels below 0 are padding: give real ones for some samples"
                ),
            )
        drop = engine - source if self.metric in ERRORS else source - engine
        resamples = _RESAMPLES_OF_BOXES if self._matches else bootstrap.RESAMPLES
        spread = bootstrap.intervals(count, before, after, resamples=resamples)
        if spread is None:
            return Task(
                metric=self.metric, output=self._output, source=source, engine=engine, drop=drop
            )
        of_source, of_engine, change = spread
        if self.metric in _SHARES:
            asked = int(np.concatenate(self._rows[0])[:, 1].sum())
            of_source, of_engine = (intervals.of_share(one, asked) for one in (source, engine))
        low, high = change
        return Task(
            metric=self.metric,
            output=self._output,
            source=source,
            engine=engine,
            drop=drop,
            source_interval=of_source,
            engine_interval=of_engine,
            drop_interval=[low, high] if self.metric in ERRORS else [0.0 - high, 0.0 - low],
        )

    def _resampled(self) -> tuple[int, bootstrap.Resampled, bootstrap.Resampled]:
        if self._matches is not None:
            left, right = self._matches
            return left.count, left.value, right.value
        if self._confusions is not None:
            confusions.together(self._confusions)
            one, other = self._confusions
            return one.groups, one.value, other.value
        if self.metric in _SHARES:
            k = 1 if self.metric is Metric.RECALL1 else 5
            labels = np.concatenate(self._labels).astype(np.int64)
            for rows, kept in zip(self._rows, self._embeddings, strict=True):
                rows[:] = [sums.recall(np.concatenate(kept), labels, k)]
        before, after = (np.concatenate(rows) for rows in self._rows)
        of_totals = _TOTALS.get(self.metric, sums.ratio)
        return len(before), lambda w: of_totals(w @ before), lambda w: of_totals(w @ after)

    def _chosen(self, outputs: Arrays, label: Array) -> str:
        """The output to judge: the one that was named, or the first that fits."""
        named = self.options.output
        if named is not None and named not in outputs:
            raise InvalidData(
                f"the model has no output {named[:200]!r}",
                hint=f"its outputs are {', '.join(map(repr, list(outputs)[:20]))}",
            )
        for name, array in outputs.items():
            if named in (None, name) and self._fits(array, label):
                return name
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in outputs.items())
        raise InvalidData(
            f"no output fits {self.metric} with labels of shape {list(label.shape)}: there are {shapes}",
            hint=_FITS[self.metric],
        )

    def _fits(self, array: Array, label: Array) -> bool:
        is_float = array.dtype.kind in "fV"
        scores = is_float and array.ndim >= 2 and array.shape[1] > 1
        of_places = (array.shape[0], *array.shape[2:]) == label.shape
        match self.metric:
            case Metric.TOP5:
                return scores and of_places
            case Metric.TOP1 | Metric.MIOU | Metric.F1:
                is_class = array.dtype.kind in "iu" and array.shape in (
                    label.shape,
                    (*label.shape, 1),
                )
                return is_class or (scores and of_places)
            case Metric.RECALL1 | Metric.RECALL5:
                return is_float and array.ndim >= 2
            case Metric.CER | Metric.WER:
                return array.ndim == (3 if is_float else 2)
            case _:
                return bool(is_float and array.size == label.size)

    def _sums(self, array: Array, label: Array) -> sums.Rows:
        whole = label.astype(np.int64) if label.dtype.kind in "iu" else np.zeros(0, np.int64)
        match self.metric:
            case Metric.TOP1 | Metric.TOP5:
                if array.dtype.kind in "iu":
                    return sums.same(array.astype(np.int64).reshape(whole.shape), whole)
                _refuse_other_classes(whole, array.shape[1])
                return sums.top(array, whole, 1 if self.metric is Metric.TOP1 else 5)
            case Metric.CER | Metric.WER:
                chosen = array.argmax(axis=2) if array.ndim == 3 else array
                texts = sums.decoded(np.asarray(chosen, np.int64), self.options.blank)
                wanted = [row[row >= 0].tolist() for row in whole]
                space = self.options.space if self.metric is Metric.WER else None
                return sums.edits(texts, wanted, space)
            case Metric.COSINE:
                return sums.cosines(array, label)
            case _:
                return sums.errors(array, label, 1 if self.metric is Metric.MAE else 2)

    def _add_boxes(self, source: Arrays, engine: Arrays, labels: Arrays) -> None:
        if self._matches is None:
            at = detections.OVERLAPS if self.metric is Metric.MAP else detections.OVERLAPS[:1]
            self._matches = detections.Matches(at=at), detections.Matches(at=at)
        truth, classes = labels[BOXES].astype(np.float64), labels[LABEL].astype(np.int64)
        for matches, outputs in zip(self._matches, (source, engine), strict=True):
            boxes, scores = self._detected(outputs)
            _refuse_other_classes(classes, scores.shape[2])
            for number in range(len(classes)):
                found = detections.suppressed(
                    boxes[number], scores[number], self.options.nms_overlap
                )
                matches.add(found, truth[number], classes[number])

    def _detected(self, outputs: Arrays) -> tuple[detections.Boxes, NDArray[np.float64]]:
        """Boxes [N, M, 4] by their corners, and scores [N, M, classes]."""
        floats = {
            name: array.astype(np.float64)
            for name, array in outputs.items()
            if array.dtype.kind in "fV" and array.ndim in (2, 3)
        }
        name = next(
            (
                name
                for name, array in floats.items()
                if array.ndim == 3 and array.shape[2] == 4 and self.options.output in (None, name)
            ),
            None,
        )
        if name is None:
            raise InvalidData(
                f"no output holds boxes: { ({one: list(a.shape) for one, a in outputs.items()}) }",
                hint=_FITS[self.metric],
            )
        self._output = name
        boxes = floats.pop(name)
        count = boxes.shape[1]
        for self._scores, array in floats.items():
            if array.shape[:2] == boxes.shape[:2]:
                scores = array if array.ndim == 3 else array[..., None]
                break
            if array.ndim == 3 and array.shape[2] == count:
                scores = np.moveaxis(array, 1, 2)
                break
        else:
            raise InvalidData(
                f"no output holds a score for each of the {count} boxes of {name!r}",
                hint=_FITS[self.metric],
            )
        return (
            detections.corners(boxes) if self.options.boxes == "cxcywh" else boxes,
            scores,
        )


def _refuse_other_classes(labels: NDArray[np.int64], classes: int) -> None:
    if labels.size and labels.max() >= classes:
        raise InvalidData(
            f"'label' has the class {labels.max()}, and the output scores {classes} classes",
            hint="classes count from 0; padding is below 0",
        )


_OF_SCORES = (
    "it needs scores [samples, classes] or [samples, classes, …] and integer labels [samples, …]"
)
_OF_CLASSES = f"{_OF_SCORES}; or classes, integers of the labels' shape"
_OF_VALUES = "it needs an output of floats of the labels' own shape"
_OF_TEXT = (
    "it needs scores [samples, steps, classes], or classes [samples, steps], and integer labels "
    "[samples, symbols], padded with -1"
)
_OF_DETECTIONS = (
    "it needs boxes [samples, boxes, 4] and scores [samples, boxes, classes] as outputs, 'label' [samples, "
    "objects] padded with -1, and 'label_boxes' [samples, objects, 4] by their corners"
)
_OF_EMBEDDINGS = "it needs an output of floats [samples, values] and one integer label per sample"
_FITS: Mapping[Metric, str] = {
    Metric.TOP1: _OF_CLASSES,
    Metric.TOP5: f"{_OF_SCORES}; for classes alone choose top1",
    Metric.MIOU: _OF_CLASSES,
    Metric.F1: _OF_CLASSES,
    Metric.MAP: _OF_DETECTIONS,
    Metric.MAP50: _OF_DETECTIONS,
    Metric.COSINE: _OF_VALUES,
    Metric.MAE: _OF_VALUES,
    Metric.RMSE: _OF_VALUES,
    Metric.RECALL1: _OF_EMBEDDINGS,
    Metric.RECALL5: _OF_EMBEDDINGS,
    Metric.CER: _OF_TEXT,
    Metric.WER: _OF_TEXT,
}
_NOTHING: Mapping[Metric, str] = {
    Metric.RECALL1: "no two samples have the same label: give at least two of each",
    Metric.RECALL5: "no two samples have the same label: give at least two of each",
    Metric.MAE: "labels of NaN are padding: give numbers for some values",
    Metric.RMSE: "labels of NaN are padding: give numbers for some values",
}
