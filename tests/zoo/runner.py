"""Runs a build's plan here, without a farm: each job's stage in this process, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from farm import targets
from farm.errors import FarmError, StageFailed
from farm.plan import Plan, PlannedEngine, PlannedJob, plan
from farm.schemas import BuildRequest
from farm.specs import PARAMS, Precision, Runtime
from workers import toolchain
from workers.stages import Stage, StageResult, run

DIGEST = f"sha256:{'0' * 63}"
RUNTIMES = (Runtime.TENSORRT_RTX, Runtime.ONNXRUNTIME)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to build, and random samples of its inputs to calibrate with."""

    name: str
    path: Path
    format: str
    samples: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None  #: of the samples, to judge by
    profiles: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Built:
    """What came of one precision for one target."""

    target: str
    precision: str
    error: FarmError | None = None
    bytes: int = 0
    seconds: float = 0.0  #: of its own build job
    facts: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    #: Of its jobs, by their kinds: what each wrote, and what it recorded.
    results: Mapping[str, StageResult] = field(default_factory=dict)


def build(
    source: Source,
    *,
    precisions: Sequence[Precision],
    gpus: Sequence[str],
    folder: Path,
    **request: Any,
) -> Iterator[Built]:
    """Build every pair; one that is refused comes with the reason.

    Parameters:
        request: more fields of the build request.
    """
    runner = _Runner(_blobs(source, folder), folder)
    for gpu in gpus:
        for precision in precisions:
            try:
                [engine] = _plan(source, precision, gpu, request).engines
            except FarmError as err:
                yield Built(target=gpu, precision=str(precision), error=err)
            else:
                yield runner.engine(engine)


def _blobs(source: Source, folder: Path) -> dict[str, Path]:
    calibration, evaluation = folder / "calibration.npz", folder / "evaluation.npz"
    np.savez(calibration, **source.samples)
    blobs = {f"{DIGEST}1": source.path, f"{DIGEST}2": calibration}
    if source.labels is not None:
        np.savez(evaluation, **source.samples, label=source.labels)
        blobs[f"{DIGEST}3"] = evaluation
    return blobs


def _plan(source: Source, precision: Precision, gpu: str, more: Mapping[str, Any]) -> Plan:
    request = BuildRequest.model_validate(
        {
            "model": source.name,
            "source": {"digest": f"{DIGEST}1", "format": source.format},
            "precisions": [precision],
            "targets": [gpu],
            "profiles": list(source.profiles),
            "calibration": {"digest": f"{DIGEST}2", "method": "max"},
        }
        | ({"evaluation": {"digest": f"{DIGEST}3"}} if source.labels is not None else {})
        | more
    )
    choice = targets.choose(gpu, runtimes=RUNTIMES, online_queues={})
    return plan(request, [choice], lambda _queue: toolchain.installed(), {})


class _Runner:
    """Runs each job once; a job whose input failed fails as that did."""

    def __init__(self, blobs: Mapping[str, Path], folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder
        self._ended: dict[str, StageResult | FarmError] = {}
        self.seconds: dict[str, float] = {}

    def engine(self, engine: PlannedEngine) -> Built:
        named = {"target": str(engine.choice.target), "precision": str(engine.precision)}
        built, measured = self._run(engine.build), self._run(engine.measure)
        for end in (built, measured):
            if isinstance(end, FarmError):
                return Built(**named, error=end)
        assert isinstance(built, StageResult)
        assert isinstance(measured, StageResult)
        return Built(
            **named,
            bytes=built.outputs["engine"].stat().st_size,
            seconds=self.seconds[engine.build.key],
            facts=built.facts,
            accuracy=measured.facts["accuracy"],
            metrics=measured.facts["metrics"] or {},
            results=dict(self._results(engine.measure)),
        )

    def _results(self, job: PlannedJob) -> Iterator[tuple[str, StageResult]]:
        for given in job.inputs.values():
            if given.job is not None:
                yield from self._results(given.job)
        result = self._ended[job.key]
        assert isinstance(result, StageResult)
        yield job.kind.value, result

    def _run(self, job: PlannedJob) -> StageResult | FarmError:
        if job.key not in self._ended:
            start = time.monotonic()
            try:
                self._ended[job.key] = self._stage(job)
            except StageFailed as err:
                self._ended[job.key] = err
            self.seconds[job.key] = time.monotonic() - start
        return self._ended[job.key]

    def _stage(self, job: PlannedJob) -> StageResult:
        inputs = {}
        for role, given in job.inputs.items():
            if given.job is None:
                inputs[role] = self._blobs[given.name]
                continue
            made = self._run(given.job)
            if isinstance(made, FarmError):
                raise made
            inputs[role] = made.outputs[given.output]
        workdir = self._folder / job.key.removeprefix("sha256:")[:16]
        workdir.mkdir()
        params = PARAMS[job.kind].model_validate(job.recipe["params"])
        return run(
            Stage(
                kind=job.kind,
                params=params,
                inputs=inputs,
                workdir=workdir,
                progress=lambda *_: None,
            )
        )
