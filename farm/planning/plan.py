"""Plans a build: its jobs, each after its inputs. Pure, no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farm.errors import InvalidRequest
from farm.formats.sources import Look
from farm.planning import feasible, policy
from farm.planning.jobs import AS_GIVEN, Jobs, PlannedJob, Toolchains
from farm.planning.policy import Route
from farm.planning.recipe import Given, Input
from farm.planning.targets import Choice
from farm.schemas.submission import BuildRequest, Calibration
from farm.specs.accuracy_goal import AccuracyGoal
from farm.specs.gates import GateSet
from farm.specs.gpus import CPU
from farm.specs.options import BuilderOptions
from farm.specs.precision import CALIBRATED, TRAITS, Precision
from farm.specs.preprocess import Preprocess
from farm.specs.queues import CPU_QUEUE
from farm.specs.roles import Role
from farm.specs.runtime import TENSORRTS, Target
from farm.specs.source import Architecture, SourceFormat
from farm.specs.tasks import TaskOptions
from farm.stages import (
    BuildParams,
    CalibrateParams,
    CastParams,
    ExportParams,
    MeasureParams,
    PruneParams,
)


@dataclass(frozen=True, kw_only=True)
class PlannedEngine:
    """An engine that a build will publish."""

    choice: Choice
    precision: Precision
    build: PlannedJob
    measure: PlannedJob


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A build's jobs and engines."""

    jobs: Mapping[str, PlannedJob]  #: by key, inputs first
    engines: Sequence[PlannedEngine]
    shared: Mapping[str, Any]  #: parameters that the recipes refer to: digest → value


def plan(
    request: BuildRequest,
    choices: Sequence[Choice],
    toolchains: Toolchains,
    online_queues: Mapping[str, int],
    gates: GateSet,
    look: Look = Look(),
    most_jobs: int | None = None,
) -> Plan:
    """Plan a build.

    Parameters:
        online_queues: queue → number of online workers that consume it.
        gates: the engines' gates.
        look: what is known about the source's graph.
        most_jobs: the most jobs it may have; unlimited by default.

    Raises:
        InvalidRequest: it would have more jobs than allowed.
        TargetUnsupported, CalibrationMissing, SourceRefused: as ``feasible.routes``.
    """
    routes = feasible.routes(request, choices, look)
    jobs = Jobs(request, toolchains)
    stages = _Stages(request, jobs, online_queues, gates, choices)
    engines: dict[tuple[Target, Precision], PlannedEngine] = {}
    for choice in choices:
        for precision in dict.fromkeys(choice.of(request.precisions)):
            name = (choice.target, precision)
            if name not in engines:  # two tags may resolve to the same target
                engines[name] = stages.engine(choice, precision, routes[name])
            if most_jobs is not None and len(jobs.by_key) > most_jobs:
                raise InvalidRequest(
                    f"the build would have more than {most_jobs} jobs",
                    hint="split the targets over several builds: common jobs are shared",
                )
    return Plan(jobs=jobs.by_key, engines=list(engines.values()), shared=jobs.shared)


class _Stages:
    """Plans the stages of a request's engines, each with its inputs."""

    def __init__(
        self,
        request: BuildRequest,
        jobs: Jobs,
        online_queues: Mapping[str, int],
        gates: GateSet,
        choices: Sequence[Choice],
    ) -> None:
        self._request = request
        self._jobs = jobs
        #: Precision → what its engines are for: a GPU each, or a CPU.
        self._gpus: defaultdict[Precision, set[str]] = defaultdict(set)
        for choice in choices:
            for precision in choice.of(request.precisions):
                self._gpus[precision].add(choice.target.gpu)
        self._online_queues = online_queues
        self._gates = gates

    def engine(self, choice: Choice, precision: Precision, route: Route) -> PlannedEngine:
        build = self._build(choice, precision, route)
        measure = self._measure(choice.target, precision, route, build)
        return PlannedEngine(choice=choice, precision=precision, build=build, measure=measure)

    def _source(self) -> tuple[Input, SourceFormat]:
        """The source, or its pruned version."""
        source, prune = self._request.source, self._request.prune
        given = Given(source.digest)
        if prune is None:
            return given, source.format
        params = PruneParams(format=source.format, architecture=source.architecture, prune=prune)
        job = self._jobs.add(params, {Role.SOURCE: given}, given=())
        return job.output(Role.SOURCE), SourceFormat.PT2

    def _export(self) -> PlannedJob:
        source, kind = self._source()
        inputs = {Role.SOURCE: source} | self._samples()
        params = ExportParams(
            format=kind,
            architecture=self._architecture(kind),
            preprocess=self._preprocess(inputs),
        )
        return self._jobs.add(params, inputs)

    def _cast(self, precision: Precision) -> PlannedJob:
        inputs = {Role.ONNX: self._export().output(Role.ONNX)} | self._samples()
        params = CastParams(
            precision=precision,
            hold_out=self._hold_out,
            preprocess=self._preprocess(inputs),
        )
        return self._jobs.add(params, inputs, precision=precision)

    def _calibrate(self, precision: Precision) -> PlannedJob:
        data, evaluation = self._request.calibration, self._request.evaluation
        goal = self._goal(precision)
        asked = (
            data.model_dump(include={"method", "percentile", "batch_size", "preprocess"})
            if data
            else {}
        )
        if data:
            asked["pins"] = {"floats": data.keep_float, "quantized": data.keep_quantized}
        params = CalibrateParams.model_validate(
            {"precision": precision, "hold_out": self._hold_out, "goal": goal} | asked
        )
        inputs: dict[str, Input] = {Role.ONNX: self._export().output(Role.ONNX)}
        if data and data.is_cache:
            inputs |= {Role.RANGES: Given(data.digest)} | self._samples()
            params = params.model_copy(update={"preprocess": self._preprocess(inputs)})
        elif data:  # a graph quantised in training needs none
            inputs[Role.CALIBRATION] = Given(data.digest)
        if goal and evaluation:
            inputs[Role.EVALUATION] = Given(evaluation.digest)
        return self._jobs.add(params, inputs, precision=precision)

    def _goal(self, precision: Precision) -> AccuracyGoal | None:
        """What a calibration looks for, in the forms that its engines will run in."""
        data, evaluation = self._request.calibration, self._request.evaluation
        if not data or data.is_cache or not data.budget_s:
            return None
        if evaluation is None or evaluation.max_drop is None:
            return None
        on_cpus = CPU in self._gpus[precision]
        return AccuracyGoal(
            metric=evaluation.metric,
            task=evaluation.task,
            max_drop=evaluation.max_drop,
            # No CPU computes fp8.
            max_latency_ratio=evaluation.max_latency_ratio if precision is Precision.INT8 else None,
            preprocess=evaluation.preprocess,
            on_cpus=on_cpus,
            on_gpus=not on_cpus or len(self._gpus[precision]) > 1,
            budget_s=data.budget_s,
        )

    def _typed(self, precision: Precision, role: Role) -> Input:
        """The typed ONNX; one serves every architecture."""
        match TRAITS[precision].typed_by:
            case "export":
                job = self._export()
            case "cast":
                job = self._cast(precision)
            case "calibrate":
                job = self._calibrate(precision)
        return job.output(role)

    def _build(self, choice: Choice, precision: Precision, route: Route) -> PlannedJob:
        kind: SourceFormat | None = None
        inputs: dict[str, Input]
        if route.typed is None:
            source, kind = self._source()
            inputs = {Role.SOURCE: source} | self._samples()
        else:
            inputs = {Role.TYPED: self._typed(precision, route.typed)}
        ranges = self._ranges() if route.ranges else {}
        params = BuildParams(
            target=choice.target,
            compute_capability=choice.compute_capability,
            precision=precision,
            options=self._options(choice.target),
            format=kind,
            architecture=self._architecture(kind) if kind else None,
            hold_out=self._hold_out if ranges or (kind and precision in CALIBRATED) else None,
            preprocess=self._preprocess(inputs | ranges),
        )
        return self._jobs.add(
            params,
            inputs | ranges,
            queue=route.build_queue,
            target=choice.target,
            precision=precision,
            given=AS_GIVEN if kind or ranges else ("profiles",),
        )

    def _ranges(self) -> dict[str, Input]:
        """The inputs from which a build measures ranges, which integer kernels need on CPUs only."""
        data = self._calibration
        if data is None:
            return {}
        onnx = self._export().output(Role.ONNX)
        return {Role.ONNX: onnx, Role.CALIBRATION: Given(data.digest)}

    def _measure(
        self, target: Target, precision: Precision, route: Route, build: PlannedJob
    ) -> PlannedJob:
        """Measure an engine where it can run, or else its typed ONNX on a CPU.

        The latter doesn't depend on the target, so one job serves every architecture. All are compared with
        the source as submitted, so that the loss from pruning counts.
        """
        request, evaluation = self._request, self._request.evaluation
        queue = policy.run_queue(target, self._online_queues)
        runnable = queue is not None
        inputs: dict[str, Input] = {Role.SOURCE: Given(request.source.digest)}
        if route.typed is not None:
            inputs[Role.TYPED] = self._typed(precision, route.typed)
        if runnable:
            inputs[Role.ENGINE] = build.output(Role.ENGINE)
        if evaluation:
            inputs[Role.EVALUATION] = Given(evaluation.digest)
        elif self._calibration:
            inputs[Role.CALIBRATION] = Given(self._calibration.digest)
        params = MeasureParams(
            precision=precision,
            target=target if runnable else None,
            format=request.source.format,
            architecture=request.source.architecture,
            options=self._options(target) if runnable else BuilderOptions(),
            metric=evaluation.metric if evaluation else None,
            task=evaluation.task if evaluation else TaskOptions(),
            max_drop=evaluation.max_drop if evaluation else None,
            gates=self._gates.of(precision),
            pruned=request.prune is not None,
            hold_out=self._hold_out,
            preprocess=self._preprocess(inputs),
        )
        return self._jobs.add(
            params,
            inputs,
            queue=queue or CPU_QUEUE,
            target=target if runnable else None,
            precision=precision,
        )

    def _samples(self) -> dict[str, Input]:
        """The samples for every run of the model: the user's own data, if any."""
        if self._calibration:
            return {Role.CALIBRATION: Given(self._calibration.digest)}
        if self._request.evaluation:
            return {Role.EVALUATION: Given(self._request.evaluation.digest)}
        return {}

    @property
    def _calibration(self) -> Calibration | None:
        """The calibration data, if they are samples."""
        data = self._request.calibration
        return None if data is None or data.is_cache else data

    def _preprocess(self, inputs: Mapping[str, Input]) -> Preprocess | None:
        """What is done to the data that a job runs the model on: calibration data, if it has both."""
        for role, data in (
            (Role.CALIBRATION, self._calibration),
            (Role.EVALUATION, self._request.evaluation),
        ):
            if role in inputs and data is not None:
                return data.preprocess
        return None

    @property
    def _hold_out(self) -> int | None:
        """The batch size for holding out data: no engine is judged on its own calibration data."""
        data = self._calibration
        return data.batch_size if data and not self._request.evaluation else None

    def _architecture(self, kind: SourceFormat) -> Architecture | None:
        """The architecture; None after pruning, which turns weights into a program."""
        return self._request.source.architecture if kind is SourceFormat.SAFETENSORS else None

    def _options(self, target: Target) -> BuilderOptions:
        """The requested options. TensorRT may use sparse kernels only for weights pruned for them."""
        options, prune = self._request.options, self._request.prune
        if prune and prune.method == "2:4" and target.runtime in TENSORRTS:
            return options.model_copy(update={"sparse_weights": True})
        return options
