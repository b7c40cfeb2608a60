"""A quantised graph judged as its engines will be: by the gate's own code, on labelled samples.

A part of the samples is held out: nothing is chosen by it, and what is kept has to meet the goal there too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from farm.errors import AccuracyDropped, InvalidData
from farm.reports.accuracy import Accuracy
from farm.specs.accuracy_goal import AccuracyGoal
from workers.backends.ort.cpu import OrtModel, fastest_providers
from workers.goals.halves import Halved
from workers.graphs import files
from workers.graphs.rounding import rounded_model
from workers.inputs.batch import Batch
from workers.inputs.samples import Arrays, Runnable
from workers.measure.judged import compare
from workers.quantize import activations
from workers.quantize.cpu_integers import Ranges, integer_graph
from workers.quantize.magnitudes import Magnitudes
from workers.quantize.ranges import fitting
from workers.quantize.stored_weights import fold_quantized_weights

#: The most bytes of the source's outputs that are kept between evaluations.
_MOST_KEPT_BYTES = 1 << 29
#: With fewer samples none are held out.
_LEAST_SAMPLES = 16
#: Stands for the drop of a graph whose outputs are broken: any other is better.
BROKEN = 1e9


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How a graph does.

    Parameters:
        drop: of the metric, in the worst of its forms.
        source: the metric of the unquantised graph.
        error: of its outputs, where the drop says nothing.
    """

    drop: float
    source: float
    error: float

    @property
    def rank(self) -> tuple[float, float]:
        """The lower the better."""
        return self.drop, self.error

    @classmethod
    def unknown(cls) -> Judged:
        """Of a graph that hasn't been judged, or can't be: any other is better."""
        return cls(drop=BROKEN, source=0.0, error=BROKEN)


class Part:
    """Samples that graphs are judged on, beside what the source gives for them."""

    def __init__(
        self, source: Runnable, samples: Arrays, labels: Arrays, batch: Batch, goal: AccuracyGoal
    ) -> None:
        self._samples, self._labels, self._batch, self._goal = samples, labels, batch, goal
        self._source = _Remembered(source, samples, batch)

    @property
    def count(self) -> int:
        return self._batch.count(self._samples)

    def judge(self, subject: Runnable) -> Judged:
        """Raises:
        InvalidData: the labels leave nothing to judge.
        """
        try:
            found: Accuracy = compare(
                self._source,
                subject,
                self._samples,
                self._labels,
                self._batch,
                self._goal.metric,
                self._goal.task,
            )
        except AccuracyDropped:
            self._source.rewind()
            return Judged.unknown()
        assert found.task is not None
        return Judged(
            drop=found.task.drop, source=found.task.source, error=found.relative_error or 0.0
        )


class _Remembered:
    """A source whose outputs are kept, since it is run on the same batches again and again."""

    def __init__(self, source: Runnable, samples: Arrays, batch: Batch) -> None:
        self._source = source
        self._batches = sum(
            1 for _ in batch.split(_rows_of(samples, batch), batch.opt, smallest=batch.min)
        )
        self._kept: list[Arrays] = []
        self._bytes = 0
        self._at = 0

    def run(self, arrays: Arrays) -> Arrays:
        at = self._at % max(1, self._batches)
        self._at += 1
        if at < len(self._kept):
            return self._kept[at]
        made = self._source.run(arrays)
        self._bytes += sum(array.nbytes for array in made.values())
        if at == len(self._kept) and self._bytes <= _MOST_KEPT_BYTES:
            self._kept.append(made)
        return made

    def rewind(self) -> None:
        """Start over: the last run ended early."""
        self._at = 0


def _rows_of(samples: Arrays, batch: Batch) -> Arrays:
    """Stands in for samples where only their number matters."""
    return {
        name: np.empty((*[1] * axis, array.shape[axis]), np.int8)
        for name, array in samples.items()
        if (axis := batch.axis_of(name)) is not None
    }


class Forms:
    """The forms in which a quantised graph will run: on GPUs with the rest in fp16, in integers on CPUs.

    Parameters:
        source: unquantised, for the ranges that integers need.
        batches: of the calibration data.
        seen: the magnitudes of a quantised graph's values, by which GPUs' types are chosen.
    """

    def __init__(
        self,
        goal: AccuracyGoal,
        source: onnx.ModelProto,
        batches: Sequence[Arrays],
        seen: Callable[[onnx.ModelProto], Magnitudes],
        folder: Path,
    ) -> None:
        self._goal, self._seen, self._folder = goal, seen, folder
        self._source, self._batches = source, batches
        self._limits: dict[str, float] = {}

    def of(self, quantized: onnx.ModelProto) -> list[Runnable]:
        """What is searched by: for GPUs the graph as it is written, whose rest is fp32."""
        made: list[Runnable] = []
        if self._goal.on_gpus:
            made.append(self._session(_folded(quantized), is_engine=False))
        if self._goal.on_cpus:
            made.append(self.on_cpu(quantized))
        return made

    def halved(self, quantized: onnx.ModelProto) -> Halved | None:
        """What GPUs get of a graph; None if none runs it."""
        if not self._goal.on_gpus:
            return None
        folded = _folded(quantized)
        return Halved(folded, self._seen(folded))

    def ends(
        self, quantized: onnx.ModelProto, halved: Halved | None, wide: Collection[str] = ()
    ) -> list[Runnable]:
        """What all engines are built of, each result that is fp16 or bf16 rounded to it.

        Parameters:
            wide: operators that are fp32 for GPUs although fp16 holds their values.
        """
        made: list[Runnable] = [] if halved is None else self.in_halves(halved, wide)
        if self._goal.on_cpus:
            made.append(self.on_cpu(quantized))
        return made

    def in_halves(self, halved: Halved, wide: Collection[str] = ()) -> list[Runnable]:
        """What engines for GPUs are built of."""
        return [
            self._session(rounded_model(model), is_engine=False) for model in halved.forms(wide)
        ]

    def on_cpu(self, quantized: onnx.ModelProto) -> Runnable:
        folded = _folded(quantized)
        return self._session(integer_graph(folded, self.ranges(folded)), is_engine=True)

    def source_on_cpu(self) -> Runnable:
        return self._session(self._source, is_engine=True)

    def ranges(self, quantized: onnx.ModelProto) -> Ranges:
        def found(names: Sequence[str]) -> Mapping[str, float]:
            missing = [name for name in names if name not in self._limits]
            if missing:
                self._limits |= fitting(
                    self._source, quantized, lambda: self._batches, self._folder, missing
                )
            return self._limits

        return found

    def _session(self, model: onnx.ModelProto, *, is_engine: bool) -> OrtModel:
        with files.written(model, self._folder / "judged.onnx") as file:
            if is_engine:
                return OrtModel(file, is_engine=True)
            return OrtModel(file, providers=fastest_providers())


def _folded(quantized: onnx.ModelProto) -> onnx.ModelProto:
    folded = onnx.ModelProto()
    folded.CopyFrom(quantized)
    fold_quantized_weights(folded)
    return folded


class Jury:
    """Judges quantised graphs on the samples to choose by, and on those held out."""

    def __init__(
        self,
        source: Runnable,
        samples: Arrays,
        labels: Arrays,
        batch: Batch,
        goal: AccuracyGoal,
    ) -> None:
        part = partial(Part, source, batch=batch, goal=goal)
        count = batch.count(samples)
        rows = np.arange(count)
        held = activations.held_out(count, batch.min) & (count >= _LEAST_SAMPLES)
        of = {name: labels[name] for name in labels}
        self.all = part(samples, of)
        self.chosen_by, self.held = self.all, self.all
        if held.any():
            self.chosen_by, self.held = (
                part(batch.select(samples, which), {n: a[rows[which]] for n, a in of.items()})
                for which in (~held, held)
            )
        self.seconds = 0.0  #: that the last judgement took, for each of its samples

    def judge(self, subjects: Sequence[Runnable], part: Part | None = None) -> Judged:
        """The worst of a graph's forms."""
        part = part or self.chosen_by
        start = time.monotonic()
        found = max((part.judge(subject) for subject in subjects), key=lambda one: one.rank)
        self.seconds = (time.monotonic() - start) / max(1, part.count)
        return found

    def finally_(self, subjects: Sequence[Runnable]) -> tuple[Judged, Judged]:
        """How a graph does on the samples held out, and on all of them, which is what its gate will see."""
        whole = self.judge(subjects, self.all)
        if self.held is self.all:
            return whole, whole
        try:
            return self.judge(subjects, self.held), whole
        except InvalidData as err:  # too few for this metric
            print(f"what is held out isn't judged by itself: {err.detail}", flush=True)
            return whole, whole
