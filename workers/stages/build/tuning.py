"""Chooses how ONNX Runtime runs a graph on the GPU at hand: by timing it, within a budget.

One change at a time, on top of the fastest so far. A way that fails, computes something else or isn't
clearly faster is left, with the reason.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Protocol

import torch

from farm.errors import EngineBuildFailed, FarmError
from farm.reports.provider import ProviderChoice, Trial
from farm.specs import durations
from farm.specs.precision import Precision
from workers.backends.ort import cuda
from workers.backends.ort.provider import NHWC, SEARCH, TF32
from workers.clocks.cuda import Bind, Streams, time_queries
from workers.clocks.host import Pace
from workers.inputs.batch import Arrays
from workers.measure.difference import difference
from workers.measure.timer import first_line

BUDGET_S = 60.0
#: A smaller gain is within what two runs of one engine differ by.
MIN_GAIN = 0.01
PACE = Pace(duration_s=1.0, max_s=5.0)

#: Errors that are rounding, as a share of the output's largest magnitude: 16 steps of the type.
_TOLERANCES = {Precision.FP16: 2.0**-6, Precision.BF16: 2.0**-3}
_TF32_TOLERANCE, _FP32_TOLERANCE = 2.0**-6, 1e-3


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to run a graph."""

    options: Mapping[str, str]
    fused: bool = False


@dataclass(frozen=True, kw_only=True)
class Time:
    p50_ms: float  #: of the compute time, without transfers
    cuda_graph: bool

    def beats(self, other: Time) -> bool:
        """Whether it is clearly faster. A figure without a CUDA graph is the host's, and beats none with."""
        is_like = self.cuda_graph or not other.cuda_graph
        return is_like and self.p50_ms < other.p50_ms * (1 - MIN_GAIN)


Change = Callable[[Way], Way]


def plain(*, tf32: bool) -> Way:
    """The provider's own defaults, written out."""
    return Way(options={TF32: "1" if tf32 else "0"})


def changes(*, convolves: bool, attends: bool) -> list[Change]:
    """What is worth trying for a graph."""
    made: list[Change] = []
    if attends:
        made.append(lambda way: replace(way, fused=True))
    if convolves:
        made.append(lambda way: _with(way, NHWC, "1"))
        made.append(lambda way: _with(way, SEARCH, "HEURISTIC"))
    return made


def _with(way: Way, name: str, value: str) -> Way:
    return replace(way, options={**way.options, name: value})


def chosen(
    start: Way,
    tried: Sequence[Change],
    clock: Callable[[Way], Time],
    *,
    batch: int,
    budget_s: float = BUDGET_S,
    now: Callable[[], float] = time.monotonic,
) -> tuple[Way, ProviderChoice]:
    """The fastest way found, and the record of what was tried.

    Without a figure for the first way, nothing else is tried: there is nothing to be faster than.
    """
    began, best = now(), start
    first, time_ = _trial(start, clock)
    trials = [first]
    for change in tried if time_ is not None else ():
        way = change(best)
        if now() - began > budget_s:
            trials.append(
                _record(way, reason=f"the budget of {durations.told(budget_s)} was spent")
            )
            continue
        trial, found = _trial(way, clock)
        assert time_ is not None
        if found is not None and found.beats(time_):
            best, time_ = way, found
        elif found is not None:
            trial = trial.model_copy(update={"reason": "not faster"})
        trials.append(trial)
    for one in trials:
        print(said(one), flush=True)
    choice = ProviderChoice(
        options=dict(best.options), batch=batch, budget_s=budget_s, tried=trials
    )
    return best, choice


def said(trial: Trial) -> str:
    """``prefer_nhwc=1, use_tf32=1, fused attention: 0.567 ms as a CUDA graph``"""
    parts = [f"{name}={value}" for name, value in sorted(trial.options.items())]
    way = ", ".join([*parts, "fused attention"] if trial.fused_attention else parts)
    graph = " as a CUDA graph" if trial.cuda_graph else ""
    timed = None if trial.p50_ms is None else f"{trial.p50_ms:.3f} ms{graph}"
    return f"{way}: {', '.join(filter(None, (timed, trial.reason)))}"


def _trial(way: Way, clock: Callable[[Way], Time]) -> tuple[Trial, Time | None]:
    try:
        found = clock(way)
    except FarmError as err:
        return _record(way, reason=err.detail), None
    except Exception as err:  # from CUDA, or lack of memory
        return _record(way, reason=first_line(err)), None
    return _record(way, p50_ms=round(found.p50_ms, 4), cuda_graph=found.cuda_graph), found


def _record(way: Way, **more: object) -> Trial:
    return Trial.model_validate(
        {"options": dict(way.options), "fused_attention": way.fused, **more}
    )


class Runs(Protocol):
    """Makes an engine's outputs, and times it."""

    def run(self, arrays: Arrays) -> Arrays: ...

    def time(self, arrays: Arrays) -> Time: ...


@dataclass(kw_only=True)
class Clock:
    """Times ways on the same samples, each held against the first one's outputs."""

    load: Callable[[Way], Runs]
    arrays: Arrays
    tolerance: float
    _expected: Arrays | None = field(default=None, init=False)

    def __call__(self, way: Way) -> Time:
        """The time of one way.

        Raises:
            EngineBuildFailed: its outputs aren't the first way's, beyond rounding.
        """
        runs = self.load(way)
        outputs = runs.run(self.arrays)
        if self._expected is None:
            self._expected = outputs
        why = difference(self._expected, outputs).beyond(self.tolerance)
        if why:
            raise EngineBuildFailed(f"its outputs differ: {why}")
        return runs.time(self.arrays)


def tolerance(precision: Precision, *, tf32: bool) -> float:
    """The largest difference between two ways, as a share of an output's largest magnitude."""
    return _TOLERANCES.get(precision, _TF32_TOLERANCE if tf32 else _FP32_TOLERANCE)


class OnGpu:
    """One way on the current GPU."""

    def __init__(self, files: Mapping[bool, Path], way: Way) -> None:
        _free()
        self._engine = cuda.OrtCudaEngine(files[way.fused], way.options)

    def run(self, arrays: Arrays) -> Arrays:
        return self._engine.run(arrays)

    def time(self, arrays: Arrays) -> Time:
        """As a CUDA graph where it can be captured."""
        streams = Streams()
        try:
            return _timed(self._engine.bind_graph, arrays, streams, cuda_graph=True)
        except Exception as err:  # pybind classes of ONNX Runtime with no common public base
            print(f"not as a CUDA graph: {first_line(err)}", flush=True)
        return _timed(self._engine.bind, arrays, streams, cuda_graph=False)


def _timed(bind: Bind, arrays: Arrays, streams: Streams, *, cuda_graph: bool) -> Time:
    span = time_queries(bind, arrays, PACE, streams)
    p50_ms = median(query.compute_ms for query in span.queries)
    return Time(p50_ms=p50_ms, cuda_graph=cuda_graph)


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()
