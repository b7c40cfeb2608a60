"""Compares an engine's outputs and task accuracy with its source's.

The comparison depends on the output. Floats are compared by cosine similarity and error; integers and
booleans by the share of equal values; outputs whose size depends on the data item by item. Scores of shape
[N,C] also have a class, the largest one, unless they are vectors of length 1, as embeddings are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from farm.reports.accuracy import Accuracy, OutputAccuracy, Task
from farm.specs.tasks import Metric
from workers.measure import bootstrap, intervals, items
from workers.measure.parts import Parts

Outputs = Mapping[str, NDArray[np.generic]]
Labels = NDArray[np.int64]

#: Scores this close to the best, as a share of their output's range, count as tied: rounding decides which
#: is the largest. Moreover, what looks like scores may be an embedding.
TIE = 0.05
#: Integers from 0 below this are counted by value: classes rather than ids.
_MOST_VALUES = 1000
_SUM_TOLERANCE = 1e-2
_NORM_TOLERANCE = 1e-2
#: Stands in for infinity, which JSON lacks: the error relative to a source that is zero everywhere.
_MAX_ERROR = 1e9


@dataclass(kw_only=True)
class OutputComparison:
    """Accumulates batches of a source's and an engine's outputs for the same samples.

    Parameters:
        batch_axes: output → batch axis, None if it is the same for every sample; by default 0, if that
            axis is as long as the batch.
        labels: the classes of all samples, [N], or [N, …] where each position has its own.
        varying: the outputs whose size depends on the data: output → axis that counts its items. If one
            is found to vary only in a later batch, earlier ones weren't compared item by item: repeat the
            whole comparison with the final value of this field.
    """

    batch_axes: Mapping[str, int | None] = field(default_factory=dict)
    labels: NDArray[np.generic] | None = None
    varying: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    not_finite: int = 0  #: values that are NaN or infinite in one, and not the same in the other
    _outputs: dict[str, _Output] = field(default_factory=dict)
    _empty: set[str] = field(default_factory=set)  #: outputs without a value in some batch
    #: one share per batch in which sizes differ
    _matched: list[float] = field(default_factory=list)

    def add(self, source: Outputs, engine: Outputs, count: int) -> None:
        """Add one batch of ``count`` samples.

        Raises:
            KeyError, ValueError: the engine lacks an output, or its rank differs.
        """
        self.varying |= items.varying(source, engine)
        for name, expected in source.items():
            actual = engine[name]
            if name in self.varying:
                continue
            known = self._outputs.get(name)
            if expected.size == actual.size == 0:
                self._empty.add(name)
                if known:
                    known.add_nothing(count)
                continue
            if actual.shape != expected.shape:
                raise ValueError(name)
            if known is None:
                known = self._outputs[name] = _Output(name=name)
                known.add_nothing(self.samples)
            axis = _batch_axis(expected, self.batch_axes.get(name, 0), count)
            known.add(expected, actual, axis, count)
            labels = self.labels
            of_batch = None
            if labels is not None:
                of_batch = labels[self.samples : self.samples + count].astype(np.int64)
            known.add_classes(expected, actual, axis, of_batch)
        self.not_finite = sum(output.not_finite for output in self._outputs.values())
        for group in items.groups(self.varying, source, engine):
            self._matched.append(items.matched(group, source, engine))
        self.samples += count

    def found(self) -> Accuracy:
        """Return the figures; with labels, also the task accuracy of source and engine, as shares.

        A figure is None if no output has it. With several outputs, the worst one counts.
        """
        compared = [one for name, one in self._outputs.items() if name not in self.varying]
        cosines = [output.cosines() for output in compared if output.is_float]
        worst = np.minimum.reduce(cosines) if cosines else None
        # Probabilities first, then other scores, then integers, which may mean anything.
        by_kind = sorted(compared, key=lambda one: (not one.is_probabilities, not one.is_float))
        classes = next((output for output in by_kind if output.has_classes), None)
        errors = [output.error() for output in compared if output.is_float]
        agreement = _agreement(classes)
        equal, equal_interval = _worst([one.equal() for one in compared if not one.is_float])
        matched, matched_interval = _worst([np.asarray(self._matched)] if self._matched else [])
        outputs = [one.found() for one in compared]
        outputs += [OutputAccuracy(name=name, kind="items") for name in self.varying]
        task = next(filter(None, (output.task() for output in by_kind)), None)
        return Accuracy(
            samples=self.samples,
            top1_agreement=agreement.share,
            top1_interval=agreement.interval,
            top1_output=agreement.output,
            top1_or_tied=agreement.or_tied,
            equal=equal,
            equal_interval=equal_interval,
            matched=matched,
            matched_interval=matched_interval,
            match_tolerance=items.TOLERANCE if self._matched else None,
            cosine_mean=None if worst is None else float(worst.mean()),
            cosine_min=None if worst is None else float(worst.min()),
            cosine_interval=None if worst is None else intervals.of_mean(worst),
            relative_error=max((e for e in errors if e is not None), default=None),
            max_abs_error=max((o.max_abs_error for o in compared if o.is_float), default=None),
            all_nan=[output.name for output in compared if output.is_all_nan],
            all_empty=sorted(self._empty - self._outputs.keys() - self.varying.keys()),
            outputs=in_task(outputs, [task.output]) if task else outputs,
            task=task,
        )


@dataclass(kw_only=True)
class _Output:
    """One output over all batches."""

    name: str
    is_float: bool = False
    is_probabilities: bool = False  #: they add up to one in every sample
    is_directions: bool = (
        False  #: every sample has length 1: an embedding, whose largest value means nothing
    )
    not_finite: int = 0
    max_abs_error: float = 0.0
    _values: int = 0
    _nan: int = 0
    _squared_error: float = 0.0
    _sum: float = 0.0
    _squares: float = 0.0
    _cosines: list[NDArray[np.float64]] = field(default_factory=list)
    _equal: list[NDArray[np.float64]] = field(default_factory=list)
    _source: list[NDArray[np.int64]] = field(default_factory=list)  #: classes
    _engine: list[NDArray[np.int64]] = field(default_factory=list)
    _tied: list[NDArray[np.bool_]] = field(default_factory=list)
    #: of integers: by value, how many the source has, and in how many of these the engine has the same; None
    #: if there are too many values
    _by_value: tuple[NDArray[np.int64], NDArray[np.int64]] | None = field(
        default_factory=lambda: (np.zeros(_MOST_VALUES, np.int64), np.zeros(_MOST_VALUES, np.int64))
    )
    _parts: Parts = field(default_factory=Parts)
    has_places: bool = False  #: whether a sample has several classes
    _is_judged: bool = True  #: whether its classes fit the labels
    #: of source and engine: by sample, the share of its classes that is right
    _hits: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = field(
        default_factory=lambda: ([], [])
    )

    def add_nothing(self, count: int) -> None:
        """Add samples for which both lack values, and so are equal: outputs have as many samples each."""
        self._cosines.append(np.ones(count))
        self._equal.append(np.ones(count))

    def add(
        self,
        expected: NDArray[np.generic],
        actual: NDArray[np.generic],
        axis: int | None,
        count: int,
    ) -> None:
        """Add a batch.

        Parameters:
            axis: the batch axis; None if the output is the same for every sample.
        """
        left, right = (_rows(array, axis, count) for array in (expected, actual))
        self.is_float = expected.dtype.kind in "fV"
        if self.is_float:
            self._add_floats(left.astype(np.float64), right.astype(np.float64), count)
            self._parts.add(expected, actual, axis)
        else:
            self._equal.append(np.broadcast_to((left == right).mean(axis=1), (count,)))
            self._add_values(left, right)

    def _add_values(self, left: NDArray[np.generic], right: NDArray[np.generic]) -> None:
        """Count each value of the source, and how often the engine has it there, while they are few."""
        if self._by_value is None:
            return
        if left.dtype.kind not in "biu":  # text
            self._by_value = None
            return
        values, same = left.astype(np.int64).ravel(), (left == right).ravel()
        if values.min() < 0 or values.max() >= _MOST_VALUES:
            self._by_value = None
            return
        for found, total in zip((values, values[same]), self._by_value, strict=True):
            total += np.bincount(found, minlength=_MOST_VALUES)

    def rare(self) -> tuple[int, float] | None:
        """How many values aren't the source's most common one, and which share of them the engine has.

        A map that is nearly all background equals an engine's that never finds anything else.
        """
        if self._by_value is None:
            return None
        given, kept = (np.delete(one, self._by_value[0].argmax()).sum() for one in self._by_value)
        return (int(given), float(kept / given)) if given else None

    def add_classes(
        self,
        expected: NDArray[np.generic],
        actual: NDArray[np.generic],
        axis: int | None,
        labels: Labels | None,
    ) -> None:
        """Add the classes of a batch, if the output has any.

        Those of positions, such as pixels, are counted and not kept.
        """
        if axis is None:
            return
        rows, places = np.moveaxis(expected, axis, 0), () if labels is None else labels.shape[1:]
        source, engine = _classes(rows, places), _classes(np.moveaxis(actual, axis, 0), places)
        if source is None or engine is None:
            return
        if labels is not None:
            count = rows.shape[1] if self.is_float else np.inf
            fits = source.shape == labels.shape and int(labels.max(initial=-1)) < count
            self._is_judged = fits and self._is_judged
            for hits, classes in zip(self._hits, (source, engine), strict=True):
                if self._is_judged:
                    hits.append((classes == labels).reshape(len(labels), -1).mean(axis=1))
        self.has_places = source.ndim > 1
        if self.has_places:
            return
        if self.is_float and rows.ndim == 2:
            scores = rows.astype(np.float64)
            self._tied.append((source == engine) | _is_tied(scores, engine))
            so_far = not self._source
            self.is_directions = _is_directions(scores) and (self.is_directions or so_far)
            self.is_probabilities = _is_probabilities(scores) and (self.is_probabilities or so_far)
        self._source.append(source)
        self._engine.append(engine)

    def _add_floats(
        self, left: NDArray[np.float64], right: NDArray[np.float64], count: int
    ) -> None:
        both = np.isfinite(left) & np.isfinite(right)
        same = (left == right) | (np.isnan(left) & np.isnan(right))
        # Another infinity, or NaN for one, is as wrong as either for a number.
        self.not_finite += int((~same & ~both).sum())
        error = np.abs(np.where(both, left, 0.0) - np.where(both, right, 0.0))
        self.max_abs_error = max(self.max_abs_error, float(error.max(initial=0.0)))
        self._values += int(both.sum())
        self._nan += int(np.isnan(left).sum())
        self._squared_error += float((error**2).sum())
        kept = np.where(both, left, 0.0)
        self._sum += float(kept.sum())
        self._squares += float((kept**2).sum())
        cosines = _cosine(kept, np.where(both, right, 0.0))
        self._cosines.append(np.broadcast_to(cosines, (count,)))

    @property
    def is_all_nan(self) -> bool:
        return self.is_float and self._values == 0 and self._nan > 0

    @property
    def has_classes(self) -> bool:
        has = bool(self._source) or self.has_places
        return has and (self.is_probabilities or not self.is_directions)

    def cosines(self) -> NDArray[np.float64]:
        return np.concatenate(self._cosines)

    def equal(self) -> NDArray[np.float64]:
        return np.concatenate(self._equal)

    def error(self) -> float | None:
        """The RMS error divided by the standard deviation of the source's values.

        Values with a large constant part, such as temperatures in kelvin, have a cosine of 1 however wrong
        the rest is. None without values to compare.
        """
        if self._values == 0:
            return None
        spread = max(self._squares - self._sum**2 / self._values, 0.0)
        # For a constant, the values themselves are the scale.
        scale = spread if spread > 1e-12 * self._squares else self._squares
        if self._squared_error == 0.0:
            return 0.0
        return min(float(np.sqrt(self._squared_error / scale)), _MAX_ERROR) if scale else _MAX_ERROR

    def found(self) -> OutputAccuracy:
        if not self.is_float:
            equal = float(self.equal().mean())
            found = OutputAccuracy(name=self.name, kind="integers", equal=equal)
            if rare := self.rare():
                found = found.model_copy(update={"rare": rare[0], "rare_equal": rare[1]})
            return found
        found = OutputAccuracy(
            name=self.name,
            kind="scores" if self.has_classes else "values",
            cosine_mean=float(self.cosines().mean()),
            relative_error=self.error(),
            max_abs_error=self.max_abs_error,
            not_finite=self.not_finite,
        )
        if parts := self._parts.found():
            of = {"parts_axis": parts.axis, "parts": parts.varying, "parts_lost": parts.lost}
            found = found.model_copy(update=of)
        return found

    def tied(self) -> NDArray[np.bool_]:
        """Whether each sample's class is the source's, or one that tied with it there."""
        return np.concatenate(self._tied)

    def classes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.concatenate(self._source), np.concatenate(self._engine)

    def task(self) -> Task | None:
        """Top-1 accuracy; None without labels, or if the output lacks their shape or classes."""
        before, after = self._hits
        if not self._is_judged or not before:
            return None
        return _task(self.name, *map(np.concatenate, (before, after)))


def in_task(
    outputs: Sequence[OutputAccuracy], read: Collection[str | None]
) -> list[OutputAccuracy]:
    """The outputs, each with whether it is among those that the task's metric reads."""
    return [one.model_copy(update={"in_task": one.name in read}) for one in outputs]


def _batch_axis(array: NDArray[np.generic], axis: int | None, count: int) -> int | None:
    if axis is None:
        return None
    return axis if array.ndim > axis and array.shape[axis] == count else None


def _rows(array: NDArray[np.generic], axis: int | None, count: int) -> NDArray[np.generic]:
    """One row per sample; a single row without a batch."""
    if axis is None:
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(count, -1)


def _classes(array: NDArray[np.generic], places: tuple[int, ...]) -> NDArray[np.int64] | None:
    """The class of each sample, or of each of its positions: the integer itself, or the largest score's."""
    if array.dtype.kind in "iu":
        shape = (len(array),) if array.shape[1:] == (1,) else array.shape
        return array.reshape(shape).astype(np.int64)
    is_scores = array.ndim == 2 or (bool(places) and array.shape[2:] == places)
    if array.dtype.kind in "fV" and is_scores and array.shape[1] > 1:
        return np.asarray(array.astype(np.float64).argmax(axis=1))
    return None


@dataclass(frozen=True, kw_only=True)
class _Agreement:
    """How often the engine's class is the source's; None if no output has classes."""

    share: float | None = None
    interval: intervals.Interval | None = None
    output: str | None = None
    or_tied: float | None = None


def _agreement(classes: _Output | None) -> _Agreement:
    if classes is None:
        return _Agreement()
    if classes.has_places:
        return _Agreement()
    source, engine = classes.classes()
    share = float((source == engine).mean())
    return _Agreement(
        share=share,
        interval=intervals.of_share(share, len(source)),
        output=classes.name,
        or_tied=float(classes.tied().mean()) if classes.is_float else share,
    )


def _is_tied(scores: NDArray[np.float64], chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        lost = scores.max(axis=1) - scores[np.arange(len(scores)), chosen]
    finite = scores[np.isfinite(scores)]
    return np.asarray(lost <= TIE * float(np.ptp(finite))) if finite.size else lost == 0


def _is_probabilities(scores: NDArray[np.float64]) -> bool:
    sums = scores.sum(axis=1)
    return bool((scores >= 0).all() and (np.abs(sums - 1) < _SUM_TOLERANCE).all())


def _is_directions(scores: NDArray[np.float64]) -> bool:
    lengths = np.linalg.norm(scores, axis=1)
    return bool((np.abs(lengths - 1) < _NORM_TOLERANCE).all())


def _worst(
    shares: Sequence[NDArray[np.float64]],
) -> tuple[float | None, intervals.Interval | None]:
    """The worst output's mean share, and its interval."""
    if not shares:
        return None, None
    worst = min(shares, key=lambda values: float(values.mean()))
    mean = float(worst.mean())
    return mean, intervals.of_share(mean, len(worst))


def _task(output: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Task:
    """Accuracy before and after, per sample: a sample with several positions may be partly right."""
    count = len(before)
    of_source, of_engine = (float(right.mean()) for right in (before, after))
    spread = bootstrap.intervals(count, lambda w: w @ before / count, lambda w: w @ after / count)
    return Task(
        metric=Metric.TOP1,
        output=output,
        source=of_source,
        engine=of_engine,
        drop=of_source - of_engine,
        # Where all samples are right, a bootstrap says nothing.
        source_interval=intervals.of_share(of_source, count),
        engine_interval=intervals.of_share(of_engine, count),
        drop_interval=[0.0 - spread[2][1], 0.0 - spread[2][0]] if spread else None,
    )


def _cosine(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine similarity per row: 1 for two zero rows, 0 if only one is zero."""
    norms = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    product = norms[0] * norms[1]
    same = (norms[0] == 0) & (norms[1] == 0)
    dots = (left * right).sum(axis=1)
    cosines = np.where(
        same, 1.0, np.divide(dots, product, out=np.zeros(len(left)), where=product > 0)
    )
    result: NDArray[np.float64] = np.clip(cosines, -1.0, 1.0)
    return result
