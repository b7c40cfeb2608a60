"""Mean average precision of detectors, as COCO defines it: 101 points of recall, 100 boxes per sample.

Boxes are ``x1, y1, x2, y2``. Crowds and sizes of objects are no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
Integers = NDArray[np.int64]

OVERLAPS = tuple(np.linspace(0.5, 0.95, 10))
MOST_BOXES = 100
_MOST_CANDIDATES = 1000  #: per sample, before suppression
#: Resamples times boxes at once.
_MOST_VALUES = 4_000_000
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sample's boxes, the strongest first."""

    boxes: Boxes
    scores: NDArray[np.float64]
    classes: Integers


def corners(boxes: Boxes) -> Boxes:
    """``cx, cy, w, h`` as corners."""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([middle - half, middle + half], axis=-1)


def overlaps(left: Boxes, right: Boxes) -> NDArray[np.float64]:
    """Intersection over union of all pairs."""
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    high = np.minimum(left[:, None, 2:], right[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(each[:, 2:] - each[:, :2], 0, None).prod(axis=-1) for each in (left, right)]
    union = areas[0][:, None] + areas[1][None] - both
    found: NDArray[np.float64] = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    return found


def suppressed(boxes: Boxes, scores: NDArray[np.float64], most: float) -> Found:
    """The boxes that stay after non-maximum suppression within each class.

    Parameters:
        scores: [boxes, classes]. A box counts for each class with a score above 0.
        most: the largest overlap of two boxes that both stay.
    """
    usable = np.where(
        np.isfinite(scores) & np.isfinite(boxes).all(axis=1, keepdims=True), scores, 0.0
    )
    which, classes = np.nonzero(usable > 0)
    values = usable[which, classes]
    order = np.argsort(-values, kind="stable")[:_MOST_CANDIDATES]
    which, classes, values = which[order], classes[order], values[order]
    stays = np.ones(len(which), bool)
    if most < 1:
        for one in np.unique(classes):
            members = np.flatnonzero(classes == one)
            between = overlaps(boxes[which[members]], boxes[which[members]])
            for place, member in enumerate(members):
                if stays[member]:
                    stays[members[place + 1 :][between[place, place + 1 :] > most]] = False
    kept = np.flatnonzero(stays)[:MOST_BOXES]
    return Found(boxes=boxes[which[kept]], scores=values[kept], classes=classes[kept])


@dataclass(kw_only=True)
class Matches:
    """Which boxes are right, at each overlap: accumulates samples."""

    at: Sequence[float] = OVERLAPS
    count: int = 0
    _sample: list[Integers] = field(default_factory=list)
    _scores: list[NDArray[np.float64]] = field(default_factory=list)
    _classes: list[Integers] = field(default_factory=list)
    _right: list[NDArray[np.bool_]] = field(default_factory=list)  #: [boxes, overlaps]
    _labelled: list[tuple[int, int]] = field(default_factory=list)  #: sample, class

    def add(self, found: Found, boxes: Boxes, labels: Integers) -> None:
        """Add a sample with its labelled boxes; a label below 0 is padding."""
        known = labels >= 0
        boxes, labels = boxes[known], labels[known]
        right = np.zeros((len(found.boxes), len(self.at)), bool)
        for one in np.unique(found.classes):
            mine = np.flatnonzero(found.classes == one)
            between = overlaps(found.boxes[mine], boxes[labels == one])
            for column, overlap in enumerate(self.at):
                right[mine, column] = _matched(between, overlap)
        self._sample.append(np.full(len(found.boxes), self.count))
        self._scores.append(found.scores)
        self._classes.append(found.classes)
        self._right.append(right)
        self._labelled += [(self.count, int(label)) for label in labels]
        self.count += 1

    def value(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over classes and overlaps, for weights [resamples, samples]."""
        boxes = sum(len(scores) for scores in self._scores)
        step = max(1, _MOST_VALUES // max(1, boxes))
        return np.concatenate(
            [self._value(weights[at : at + step]) for at in range(0, len(weights), step)]
        )

    def _value(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        labelled = np.asarray(self._labelled, np.int64).reshape(-1, 2)
        sample, scores, classes = (
            np.concatenate(each) for each in (self._sample, self._scores, self._classes)
        )
        right = np.concatenate(self._right)
        total, present = np.zeros(len(weights)), np.zeros(len(weights))
        for one in np.unique(labelled[:, 1]):
            wanted = weights[:, labelled[labelled[:, 1] == one, 0]].sum(axis=1)
            mine = np.flatnonzero(classes == one)
            mine = mine[np.argsort(-scores[mine], kind="stable")]
            for column in range(len(self.at)):
                total += _average_precision(weights[:, sample[mine]], right[mine, column], wanted)
            present += wanted > 0
        found: NDArray[np.float64] = np.divide(
            total,
            present * len(self.at),
            out=np.full(len(weights), np.nan),
            where=present > 0,
        )
        return found


def _matched(between: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    """Each box, in order, takes the labelled box that it overlaps most of those still free."""
    free = np.ones(between.shape[1], bool)
    right = np.zeros(len(between), bool)
    for number, row in enumerate(between):
        open_ = np.where(free, row, -1.0)
        if open_.size and open_.max() >= least:
            free[int(open_.argmax())] = False
            right[number] = True
    return right


def _average_precision(
    weights: NDArray[np.float64], right: NDArray[np.bool_], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Per resample; 0 without labelled boxes."""
    if not weights.shape[1]:
        return np.zeros(len(weights))
    hits = np.cumsum(weights * right, axis=1)
    taken = np.cumsum(weights, axis=1)
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(wanted, 1e-12)[:, None]
    found = np.zeros(len(weights))
    for number in np.flatnonzero(wanted > 0):
        places = np.searchsorted(recall[number], _RECALLS - 1e-9)
        inside = places < recall.shape[1]
        found[number] = precision[number, places[inside]].sum() / len(_RECALLS)
    return found
