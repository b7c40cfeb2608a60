"""What a build needs: its jobs, in an order in which each comes after its inputs. Pure, no I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from farm.errors import CalibrationMissing, InvalidRequest, SourceRefused, TargetUnsupported
from farm.formats.sources import Look
from farm.planning import keys, targets
from farm.planning.targets import Choice
from farm.schemas.submission import BuildRequest
from farm.specs import gpus
from farm.specs.gates import GateSet
from farm.specs.options import BuilderOptions
from farm.specs.precision import CALIBRATED, Precision
from farm.specs.queues import CPU_QUEUE
from farm.specs.roles import Role
from farm.specs.runtime import TENSORRTS, Runtime, Target
from farm.specs.source import MODULES, Architecture, SourceFormat
from farm.stages import (
    STAGES,
    BuildParams,
    CalibrateParams,
    CastParams,
    ExportParams,
    JobKind,
    MeasureParams,
    PruneParams,
    StageParams,
)

#: What jobs take of a request as it is.
_GIVEN = {"profiles", "fixed_inputs"}
#: Of a parameter in a recipe, as JSON. A longer one is kept once, and the recipes name it.
_MOST_INLINE_CHARS = 1024
#: The one field of what stands in a recipe for such a parameter; its value is the digest.
SHARED = "$shared"


@dataclass(frozen=True, kw_only=True)
class Input:
    """Where a job's input comes from: a blob, or an output of another planned job."""

    digest: str | None = None
    job: PlannedJob | None = None
    output: str = ""

    @property
    def name(self) -> str:
        return self.digest or f"{self.job.key if self.job else ''}#{self.output}"


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedJob:
    kind: JobKind
    title: str
    queue: str
    key: str
    recipe: Mapping[str, Any]
    toolchain: Mapping[str, str]
    inputs: Mapping[str, Input]
    target: Target | None
    precision: Precision | None


@dataclass(frozen=True, kw_only=True)
class PlannedEngine:
    choice: Choice
    precision: Precision
    build: PlannedJob
    measure: PlannedJob


@dataclass(kw_only=True)
class Plan:
    jobs: dict[str, PlannedJob] = field(default_factory=dict)  #: by key, inputs first
    engines: list[PlannedEngine] = field(default_factory=list)
    #: Digest → value, of the parameters that the recipes name rather than hold.
    shared: dict[str, Any] = field(default_factory=dict)


Toolchains = Callable[[str], Mapping[str, str]]
"""Queue → the toolchain of a worker that consumes it, or nothing when none is known."""


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
        gates: that the engines are held to.
        look: what is known of the source's graph.
        most_jobs: that it may have; by default any number.

    Raises:
        InvalidRequest: it would have more jobs.
        TargetUnsupported: for a precision that a target hasn't.
        CalibrationMissing: INT8 or FP8 without data, of a source that isn't quantised.
        SourceRefused: a source that can't be pruned, and shall be.
    """
    _check(request, choices, look)
    planner = _Planner(request, toolchains, online_queues, gates)
    for choice in choices:
        for precision in dict.fromkeys(request.precisions):
            planner.engine(choice, precision)
            if most_jobs is not None and len(planner.plan.jobs) > most_jobs:
                raise InvalidRequest(
                    f"the build would have more than {most_jobs} jobs",
                    hint="submit its targets in several builds: they share what they have in common",
                )
    return planner.plan


def _check(request: BuildRequest, choices: Sequence[Choice], look: Look) -> None:
    if request.prune and request.source.format not in MODULES:
        raise SourceRefused(
            f"pruning works on PyTorch's modules, and the source is {request.source.format}",
            hint="hand in the torch.export program that it was made from, or prune the model before "
            "you export it, and submit without prune",
        )
    if request.source.format not in MODULES:
        for choice in choices:
            if choice.target.runtime is Runtime.TORCHSCRIPT:
                raise SourceRefused(
                    f"{choice.asked}: TorchScript is made of PyTorch's programs, and the source is "
                    f"{request.source.format}",
                    hint="use onnxruntime:cpu, or hand in the torch.export program",
                )
    for choice in choices:
        reason = targets.option_refusal(choice.target, request.options)
        if reason:
            raise TargetUnsupported(
                f"{choice.asked}: {reason}", hint="submit that target in a build of its own"
            )
    for precision in request.precisions:
        calibrated = request.calibration is not None or look.may_be_quantized
        if precision in CALIBRATED and not calibrated:
            raise CalibrationMissing(f"{precision} needs calibration data")
    for choice in choices:
        for precision in request.precisions:
            reason = targets.refusal(choice.target, precision) or targets.graph_refusal(
                choice.target, precision, look.operators
            )
            if reason:
                raise TargetUnsupported(
                    f"{precision} for {choice.asked}: {reason}",
                    hint="leave that pair out, or submit it with other precisions in a build of its own",
                )


class _Planner:
    def __init__(
        self,
        request: BuildRequest,
        toolchains: Toolchains,
        online_queues: Mapping[str, int],
        gates: GateSet,
    ) -> None:
        self.plan = Plan()
        self._request = request
        self._toolchains = toolchains
        self._online_queues = online_queues
        self._gates = gates
        self._planned: set[tuple[str, Precision]] = set()
        # Once for all jobs: of a request with many inputs they are most of each recipe.
        self._given = {
            name: self._shared(value)
            for name, value in request.model_dump(mode="json", include=_GIVEN).items()
        }

    def _shared(self, value: Any) -> Any:
        """A parameter as the recipes have it: a large one by its digest."""
        if len(json.dumps(value)) <= _MOST_INLINE_CHARS:
            return value
        digest = keys.key({"value": value})
        self.plan.shared[digest] = value
        return {SHARED: digest}

    def engine(self, choice: Choice, precision: Precision) -> None:
        if (str(choice.target), precision) in self._planned:
            return  # two tags that mean the same target
        self._planned.add((str(choice.target), precision))
        build = self._build(choice, precision)
        measure = self._measure(choice.target, precision, build)
        self.plan.engines.append(
            PlannedEngine(choice=choice, precision=precision, build=build, measure=measure)
        )

    def _source(self) -> tuple[Input, SourceFormat]:
        """What is built: the source, or what pruning makes of it."""
        source, prune = self._request.source, self._request.prune
        given = Input(digest=source.digest)
        if prune is None:
            return given, source.format
        params = PruneParams(format=source.format, architecture=source.architecture, prune=prune)
        job = self._add(JobKind.PRUNE, params, {Role.SOURCE: given})
        return Input(job=job, output=Role.SOURCE), SourceFormat.PT2

    def _export(self) -> PlannedJob:
        source, kind = self._source()
        params = ExportParams(format=kind, architecture=self._architecture(kind))
        return self._add(
            JobKind.EXPORT, params, {Role.SOURCE: source} | self._samples(), given=_GIVEN
        )

    def _samples(self) -> dict[str, Input]:
        """What a model is run on wherever it is: the user's own data, where there are any."""
        if self._request.calibration:
            return {Role.CALIBRATION: Input(digest=self._request.calibration.digest)}
        if self._request.evaluation:
            return {Role.EVALUATION: Input(digest=self._request.evaluation.digest)}
        return {}

    @property
    def _hold_out(self) -> int | None:
        """No engine is judged on what it was calibrated with."""
        data = self._request.calibration
        return data.batch_size if data and not self._request.evaluation else None

    def _architecture(self, kind: SourceFormat) -> Architecture | None:
        """What pruning makes of weights is a program, which needs none."""
        return self._request.source.architecture if kind is SourceFormat.SAFETENSORS else None

    def _cast(self, precision: Precision) -> PlannedJob:
        params = CastParams.model_validate({"precision": precision, "hold_out": self._hold_out})
        inputs: dict[str, Input] = {
            Role.ONNX: Input(job=self._export(), output=Role.ONNX)
        } | self._samples()
        return self._add(JobKind.CAST, params, inputs, precision=precision, given=_GIVEN)

    def _calibrate(self, precision: Precision) -> PlannedJob:
        data = self._request.calibration
        asked = {"method": data.method, "batch_size": data.batch_size} if data else {}
        params = CalibrateParams.model_validate(
            {"precision": precision, "hold_out": self._hold_out} | asked
        )
        inputs: dict[str, Input] = {Role.ONNX: Input(job=self._export(), output=Role.ONNX)}
        if data:  # a graph that was quantised in training needs none
            inputs[Role.CALIBRATION] = Input(digest=data.digest)
        return self._add(JobKind.CALIBRATE, params, inputs, precision=precision, given=_GIVEN)

    def _typed(self, precision: Precision, target: Target) -> Input:
        """The ONNX that carries the precision; one serves every architecture."""
        if precision is Precision.FP32:
            return Input(job=self._export(), output=Role.ONNX)
        if precision not in CALIBRATED:
            return Input(job=self._cast(precision), output=Role.TYPED)
        if target.gpu == gpus.CPU:
            output = Role.TYPED
        else:
            output = Role.TYPED_HALF if targets.has_bf16(target) else Role.TYPED_FP16
        return Input(job=self._calibrate(precision), output=output)

    def _build(self, choice: Choice, precision: Precision) -> PlannedJob:
        kind, ranges = None, {}
        if choice.target.runtime is Runtime.TORCHSCRIPT:
            source, kind = self._source()
            inputs = {Role.SOURCE: source} | self._samples()
        else:
            inputs = {Role.TYPED: self._typed(precision, choice.target)}
            ranges = self._ranges(precision, choice.target)
            inputs |= ranges
        params = BuildParams(
            target=choice.target,
            compute_capability=choice.compute_capability,
            precision=precision,
            options=self._options(choice.target),
            format=kind,
            architecture=self._architecture(kind) if kind else None,
            hold_out=self._hold_out if ranges else None,
        )
        return self._add(
            JobKind.BUILD,
            params,
            inputs,
            queue=targets.build_queue(choice.target),
            target=choice.target,
            precision=precision,
            given=_GIVEN if kind or ranges else {"profiles"},
        )

    def _ranges(self, precision: Precision, target: Target) -> dict[str, Input]:
        """What a build measures the ranges by that integer kernels of CPUs need, and GPUs don't."""
        data = self._request.calibration
        if precision is not Precision.INT8 or target.gpu != gpus.CPU or data is None:
            return {}
        onnx = Input(job=self._export(), output=Role.ONNX)
        return {Role.ONNX: onnx, Role.CALIBRATION: Input(digest=data.digest)}

    def _options(self, target: Target) -> BuilderOptions:
        """As asked for. TensorRT may use its sparse kernels for what was pruned for them alone."""
        options, prune = self._request.options, self._request.prune
        if prune and prune.method == "2:4" and target.runtime in TENSORRTS:
            return options.model_copy(update={"sparse_weights": True})
        return options

    def _measure(self, target: Target, precision: Precision, build: PlannedJob) -> PlannedJob:
        """Measure an engine where it can run; its typed ONNX, on a CPU, where there is no such place.

        The latter doesn't depend on the target, so one job serves every architecture. All are measured
        against the source as it was handed in: what pruning loses counts.
        """
        request = self._request
        queue = targets.run_queue(target, self._online_queues)
        runnable = queue is not None
        params = MeasureParams(
            precision=precision,
            target=target if runnable else None,
            format=request.source.format,
            architecture=request.source.architecture,
            options=self._options(target) if runnable else BuilderOptions(),
            metric=request.evaluation.metric if request.evaluation else None,
            max_drop=request.evaluation.max_drop if request.evaluation else None,
            gates=self._gates.of(precision),
            pruned=request.prune is not None,
            hold_out=self._hold_out,
        )
        inputs: dict[str, Input] = {Role.SOURCE: Input(digest=request.source.digest)}
        if target.runtime is not Runtime.TORCHSCRIPT:
            inputs[Role.TYPED] = self._typed(precision, target)
        if runnable:
            inputs[Role.ENGINE] = Input(job=build, output=Role.ENGINE)
        if request.evaluation:
            inputs[Role.EVALUATION] = Input(digest=request.evaluation.digest)
        elif request.calibration:
            inputs[Role.CALIBRATION] = Input(digest=request.calibration.digest)
        return self._add(
            JobKind.MEASURE,
            params,
            inputs,
            queue=queue or CPU_QUEUE,
            target=target if runnable else None,
            precision=precision,
            given=_GIVEN,
        )

    def _add(
        self,
        kind: JobKind,
        params: StageParams,
        inputs: Mapping[str, Input],
        *,
        queue: str = CPU_QUEUE,
        target: Target | None = None,
        precision: Precision | None = None,
        given: Collection[str] = (),
    ) -> PlannedJob:
        """Plan a job, or take the one that is planned already.

        Parameters:
            given: the parameters that it takes from the request as they are.
        """
        runtime: Runtime | None = target.runtime if target else None
        toolchain = keys.tools(kind, runtime, self._toolchains(queue), self._request.source.format)
        recipe = {
            "kind": kind.value,
            "stage": STAGES[kind].version,
            "params": self._parameters(params) | {name: self._given[name] for name in given},
            "inputs": {role: given.name for role, given in inputs.items()},
            "tools": toolchain,
        }
        key = keys.key(recipe)
        if key not in self.plan.jobs:
            self.plan.jobs[key] = PlannedJob(
                kind=kind,
                title=title(kind, self._request.model, precision, target),
                queue=queue,
                key=key,
                recipe=recipe,
                toolchain=toolchain,
                inputs=dict(inputs),
                target=target,
                precision=precision,
            )
        return self.plan.jobs[key]

    def _parameters(self, params: StageParams) -> dict[str, Any]:
        document = params.model_dump(mode="json", exclude={"architecture"})
        if "architecture" in type(params).model_fields:
            has = getattr(params, "architecture", None) is not None
            document["architecture"] = self._architecture_given if has else None
        return document

    @cached_property
    def _architecture_given(self) -> Any:
        """With its config, which may be large."""
        source = self._request.source
        return self._shared(source.model_dump(mode="json")["architecture"])


def title(kind: JobKind, model: str, precision: Precision | None, target: Target | None) -> str:
    """What people read in Flower and in tables: ``build digits:int8@sm_89``."""
    name = f"{kind} {model}"
    if precision:
        name += f":{precision}"
    if target:
        # Beside the engine of ONNX Runtime for the same CPU.
        name += f"@{target if target.runtime is Runtime.TORCHSCRIPT else target.gpu}"
    return name
