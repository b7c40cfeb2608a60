"""Runs a build's plan here, without a farm: one job after the other, in this process or each in a child."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from farm.errors import FarmError, StageFailed
from farm.planning import targets
from farm.planning.jobs import PlannedJob
from farm.planning.plan import Plan, PlannedEngine, plan
from farm.planning.recipe import Given, Made
from farm.reports.accuracy import Accuracy
from farm.reports.metrics import Metrics
from farm.schemas.submission import BuildRequest
from farm.specs.gates import GateSet
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.stages import JobKind
from workers.runner import toolchain
from workers.runner.child import Child
from workers.runner.forks import preload
from workers.runner.inside import Link, peak_memory_bytes
from workers.stages.base import StageRequest, run_request

DIGEST = f"sha256:{'0' * 63}"
RUNTIMES = (Runtime.TENSORRT_RTX, Runtime.ONNXRUNTIME)
STAGE_TIMEOUT_S = 3600.0

#: Runs a stage, and returns its ``outputs`` and ``facts``; of a child ``cpu_s`` and ``peak_bytes``, too.
Execute = Callable[[StageRequest], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to build, and random samples of its inputs to calibrate with."""

    name: str
    path: Path
    format: str
    samples: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None  #: of the samples, to judge by
    profiles: Sequence[Mapping[str, Any]] = ()
    architecture: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What came of one job."""

    job: PlannedJob
    seconds: float = 0.0
    cpu_s: float = (
        0.0  #: of its process, on all cores: what other work on the machine changes little
    )
    peak_bytes: int = 0  #: of its process's memory, with what it shares with the fork server
    outputs: Mapping[str, Path] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: FarmError | None = None


@dataclass(frozen=True, kw_only=True)
class Built:
    """What came of one precision for one target; refused when it was planned, it has no results."""

    target: str
    precision: str
    error: FarmError | None = None
    #: Of its jobs, by their kinds: what each wrote, and what it recorded.
    results: Mapping[str, Ended] = field(default_factory=dict)

    @property
    def build(self) -> Ended:
        return self.results["build"]

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.build.facts

    @property
    def bytes(self) -> int:
        return int(self.facts["engine_bytes"])

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy.model_validate(self.results["measure"].facts["accuracy"])

    @property
    def metrics(self) -> Metrics | None:
        metrics = self.results["measure"].facts["metrics"]
        return metrics and Metrics.model_validate(metrics)


def build(
    source: Source,
    *,
    precisions: Sequence[Precision],
    gpus: Sequence[str],
    folder: Path,
    **request: Any,
) -> Iterator[Built]:
    """Build every pair in this process; one that is refused comes with the reason.

    Parameters:
        request: more fields of the build request.
    """
    return Runner(source, folder, in_process).build(precisions, gpus, **request)


def stage(source: Source, kind: JobKind, folder: Path) -> Ended:
    """Run the first job of this kind of the fp32 build for ``cpu``, and what it needs.

    Raises:
        StageFailed
    """
    return Runner(source, folder, in_process).first(kind)


def in_process(request: StageRequest) -> dict[str, Any]:
    return run_request(request, lambda *_: None)


def in_child(request: StageRequest) -> dict[str, Any]:
    """Run a stage as a worker does."""
    preload(["workers.stages.warm", __name__])
    with Child(_stage, request.model_dump(mode="json"), timeout_s=STAGE_TIMEOUT_S) as child:
        made: dict[str, Any] = child.wait()
        return made


def _stage(request: dict[str, Any], link: Link) -> dict[str, Any]:
    made = run_request(StageRequest.model_validate(request), link.progress, link.quiet)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = {"cpu_s": usage.ru_utime + usage.ru_stime, "peak_bytes": peak_memory_bytes()}
    return made | spent


class Runner:
    """Runs each job once; a job whose input failed fails as that did."""

    def __init__(self, source: Source, folder: Path, execute: Execute) -> None:
        self._source = source
        self._folder = folder
        self._execute = execute
        self._blobs = _blobs(source, folder)
        self.ended: dict[str, Ended] = {}  #: by key
        self._planned: dict[str, PlannedJob] = {}

    def build(
        self, precisions: Sequence[Precision], gpus: Sequence[str], **request: Any
    ) -> Iterator[Built]:
        """Build every pair; one that is refused comes with the reason.

        Parameters:
            request: more fields of the build request.
        """
        for gpu in gpus:
            for precision in precisions:
                try:
                    [engine] = self._plan(precision, gpu, request).engines
                except FarmError as err:
                    yield Built(target=gpu, precision=str(precision), error=err)
                else:
                    yield self._engine(engine)

    def first(self, kind: JobKind) -> Ended:
        """What comes of the first job of this kind of the fp32 build for ``cpu``.

        Raises:
            StageFailed
        """
        planned = self._plan(Precision.FP32, "cpu", {})
        made = self._run(next(job for job in planned.jobs.values() if job.kind is kind))
        if made.error:
            raise made.error
        return made

    def _plan(self, precision: Precision, gpu: str, more: Mapping[str, Any]) -> Plan:
        made = _plan(self._source, precision, gpu, more)
        self._planned.update(made.jobs)
        return made

    def _engine(self, engine: PlannedEngine) -> Built:
        build, measure = self._run(engine.build), self._run(engine.measure)
        return Built(
            target=str(engine.choice.target),
            precision=str(engine.precision),
            error=build.error or measure.error,
            results={"build": build} | dict(self._results(engine.measure)),
        )

    def _results(self, job: PlannedJob) -> Iterator[tuple[str, Ended]]:
        for given in job.recipe.inputs.values():
            if isinstance(given, Made):
                yield from self._results(self._planned[given.key])
        yield job.kind.value, self._run(job)

    def _run(self, job: PlannedJob) -> Ended:
        if job.key not in self.ended:
            start = time.monotonic()
            try:
                made = self._stage(job)
            except StageFailed as err:
                made = {"error": err}
            made["outputs"] = {r: Path(path) for r, path in made.get("outputs", {}).items()}
            self.ended[job.key] = Ended(job=job, seconds=time.monotonic() - start, **made)
        return self.ended[job.key]

    def _stage(self, job: PlannedJob) -> dict[str, Any]:
        inputs = {}
        for role, given in job.recipe.inputs.items():
            if isinstance(given, Given):
                inputs[role] = self._blobs[given.digest]
                continue
            made = self._run(self._planned[given.key])
            if made.error:
                raise made.error
            inputs[role] = made.outputs[given.role]
        workdir = self._folder / job.key.removeprefix("sha256:")[:16]
        workdir.mkdir(parents=True)
        params = dict(job.recipe.params)
        return self._execute(
            StageRequest(kind=job.kind, params=params, inputs=inputs, workdir=workdir)
        )


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
            "source": {
                "digest": f"{DIGEST}1",
                "format": source.format,
                "architecture": source.architecture,
            },
            "precisions": [precision],
            "targets": [gpu],
            "profiles": list(source.profiles),
        }
        | ({"calibration": {"digest": f"{DIGEST}2", "method": "max"}} if source.samples else {})
        | ({"evaluation": {"digest": f"{DIGEST}3"}} if source.labels is not None else {})
        | more
    )
    choice = targets.choose(gpu, runtimes=RUNTIMES, online_queues={})
    return plan(request, [choice], lambda _queue: toolchain.installed(), {}, GateSet())
