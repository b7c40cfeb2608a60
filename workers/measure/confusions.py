"""Counts of classes per sample, for metrics that are means over classes: only the classes that a sample has
take memory, and what that may add up to is bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Classes of samples that are kept, 16 bytes each; beyond, neighbouring samples are counted together.
MOST = 2_000_000
_BOTH, _FOUND, _LABELLED = range(3)


@dataclass(kw_only=True)
class Confusions:
    """How often each class was found, labelled, and both, by sample.

    Parameters:
        of: the metric, from these three by class.
        most: see ``MOST``.
    """

    of: Callable[[Floats, Floats, Floats], float]
    most: int = MOST
    samples: int = 0
    group: int = 1  #: neighbouring samples that are counted together
    _rows: list[Integers] = field(default_factory=list)  #: group, kind and class as one number
    _counts: list[Integers] = field(default_factory=list)
    _kept: int = 0
    _limit: int = 0  #: where to look next whether equal entries can be merged
    _classes: int = 1

    def add(self, found: Integers, labels: Integers, classes: int) -> None:
        """Add a batch of classes, [N, …]; a label below 0 is padding, and counted nowhere.

        Parameters:
            classes: that there may be; the same for all batches.
        """
        self._classes = classes
        known = (labels >= 0) & (labels < classes)
        inside = known & (found >= 0) & (found < classes)
        numbers = self.samples + np.arange(len(labels))
        sample = np.broadcast_to(numbers.reshape(-1, *(1,) * (labels.ndim - 1)), labels.shape)
        for kind, which, values in (
            (_BOTH, inside & (found == labels), labels),
            (_FOUND, inside, found),
            (_LABELLED, known, labels),
        ):
            entries = self._entries(sample[which] // self.group, kind, values[which])
            rows, counts = np.unique(entries, return_counts=True)
            self._rows.append(rows)
            self._counts.append(counts)
            self._kept += len(rows)
        self.samples += len(labels)
        while self._kept > max(self.most, self._limit):
            self._coarsen()

    @property
    def groups(self) -> int:
        """What is resampled: samples, or neighbouring ones together."""
        return -(-self.samples // self.group)

    def value(self, weights: Floats) -> Floats:
        """The metric for weights [resamples, groups]."""
        rows, counts = np.concatenate(self._rows), np.concatenate(self._counts)
        group, rest = np.divmod(rows, 3 * self._classes)
        kind, values = np.divmod(rest, self._classes)
        present, column = np.unique(values, return_inverse=True)
        column = kind * len(present) + column

        def one(weight: Floats) -> float:
            sums: Floats = np.zeros(3 * len(present))
            sums += np.bincount(column, weight[group] * counts, minlength=len(sums))
            both, found, labelled = sums.reshape(3, -1)
            return self.of(both, found, labelled)

        return np.array([one(weight) for weight in weights])

    def _entries(self, group: Integers, kind: int, values: Integers) -> Integers:
        return (group * 3 + kind) * self._classes + values

    def _coarsen(self) -> None:
        """Count two neighbours together."""
        rows, counts = np.concatenate(self._rows), np.concatenate(self._counts)
        group, rest = np.divmod(rows, 3 * self._classes)
        merged, inverse = np.unique(group // 2 * (3 * self._classes) + rest, return_inverse=True)
        self._rows = [merged]
        self._counts = [np.bincount(inverse, counts).astype(np.int64)]
        self.group *= 2
        self._kept = len(merged)
        # A single group can't be halved.
        self._limit = self._kept if self.group >= 2 * self.samples else 0


def mean_iou(both: Floats, found: Floats, labelled: Floats) -> float:
    return _mean_of_present(both, found + labelled - both)


def f1(both: Floats, found: Floats, labelled: Floats) -> float:
    return _mean_of_present(2 * both, found + labelled)


def _mean_of_present(part: Floats, whole: Floats) -> float:
    """The mean over the classes that are found or labelled anywhere; NaN without any."""
    present = whole > 0
    return float(np.mean(part[present] / whole[present])) if present.any() else float("nan")


def together(one: Sequence[Confusions]) -> None:
    """Count the same neighbours together in all, so that they can be resampled alike."""
    group = max(each.group for each in one)
    for each in one:
        while each.group < group:
            each._coarsen()
