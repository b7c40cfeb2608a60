"""Decides whether a request can be built: every engine's route, or why it has none. Pure, no I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from farm.errors import CalibrationMissing, InvalidRequest, SourceRefused, TargetUnsupported
from farm.formats.sources import Look
from farm.planning import policy
from farm.planning.policy import Refusal, Route
from farm.planning.refused import Refused, all_at_once
from farm.planning.targets import Choice
from farm.schemas.submission import BuildRequest
from farm.specs.precision import CALIBRATED, Precision
from farm.specs.runtime import OF_PROGRAMS, Runtime, Target
from farm.specs.source import MODULES, SourceFormat

_CALLED = {Runtime.AOTINDUCTOR: "AOTInductor", Runtime.TORCHSCRIPT: "TorchScript"}

Routes = Mapping[tuple[Target, Precision], Route]


class _Fault(NamedTuple):
    """Why an engine can't be built."""

    why: str
    error: type[InvalidRequest] = TargetUnsupported
    hint: str | None = None
    of_target: bool = False  #: whatever the precision


def routes(request: BuildRequest, choices: Sequence[Choice], look: Look) -> Routes:
    """How each engine of a request is made.

    Parameters:
        look: what is known about the source's graph.

    Raises:
        TargetUnsupported: a target lacks a precision.
        CalibrationMissing: INT8 or FP8 without data, for a source that isn't quantised.
        SourceRefused: the source should be pruned and can't be.
    """
    check_prune(request)
    faults = refused(request, choices, look)
    if faults:
        raise all_at_once(faults)
    found: dict[tuple[Target, Precision], Route] = {}
    for choice in choices:
        for precision in choice.of(request.precisions):
            route = policy.route(choice.target, precision, look.operators)
            assert isinstance(route, Route)  # else it were refused
            found[choice.target, precision] = route
    return found


def refused(request: BuildRequest, choices: Sequence[Choice], look: Look) -> Sequence[Refused]:
    """The engines of a request that can't be built."""
    found: list[Refused] = []
    for choice in choices:
        faults: defaultdict[_Fault, list[Precision]] = defaultdict(list)
        for precision in dict.fromkeys(choice.of(request.precisions)):
            fault = _fault(request, choice.target, precision, look)
            if fault is not None:
                faults[fault].append(precision)
        found += [_refused(choice, fault, precisions) for fault, precisions in faults.items()]
    return found


def refusal(request: BuildRequest, target: Target, precision: Precision, look: Look) -> str | None:
    """Why one engine can't be built from this source and these data, or None if it can.

    What isn't known before its jobs run isn't told: a model may lack what a precision needs.
    """
    told = policy.refusal(target)
    fault = _fault(request, target, precision, look)
    return told or (fault and fault.why)


def check_prune(request: BuildRequest) -> None:
    """Refuse to prune what PyTorch doesn't run.

    Raises:
        SourceRefused
    """
    if request.prune and request.source.format not in MODULES:
        raise SourceRefused(
            f"pruning needs a PyTorch program, and the source is {request.source.format}",
            hint="submit the torch.export program it was exported from, or prune the model before "
            "exporting it and submit without prune",
        )


def _refused(choice: Choice, fault: _Fault, precisions: Sequence[Precision]) -> Refused:
    which = "" if fault.of_target else f"{', '.join(precisions)} for "
    of_request = fault.error is CalibrationMissing  # whatever the target
    said = fault.why if of_request else f"{which}{choice.asked}: {fault.why}"
    return Refused(
        target=str(choice.target),
        precisions=tuple(precisions),
        why=fault.why,
        said=said,
        error=fault.error,
        hint=fault.hint,
    )


def _fault(
    request: BuildRequest, target: Target, precision: Precision, look: Look
) -> _Fault | None:
    if reason := _source_refusal(request.source.format, target.runtime):
        hint = f"use onnxruntime:{target.gpu}, or submit the torch.export program"
        return _Fault(reason, SourceRefused, hint, of_target=True)
    if reason := policy.option_refusal(target, request.options):
        hint = "submit that target in a separate build"
        return _Fault(reason, hint=hint, of_target=True)
    route = policy.route(target, precision, look.operators)
    if isinstance(route, Refusal):
        hint = "leave out that pair, or name the precisions of each target: t4:fp16, h100:fp8,int8"
        return _Fault(route, hint=hint)
    has_data = request.calibration is not None or look.may_be_quantized
    if precision in CALIBRATED and not has_data:
        return _Fault(f"{precision} needs calibration data", CalibrationMissing)
    if request.calibration and request.calibration.is_cache and precision in CALIBRATED:
        return _cache_fault(target.runtime, precision)
    return None


def _cache_fault(runtime: Runtime, precision: Precision) -> _Fault | None:
    if runtime not in OF_PROGRAMS and precision is Precision.INT8:
        return None
    return _Fault(
        f"{_CALLED.get(runtime, precision)} can't take a calibration cache of TensorRT, which has ranges for "
        "int8 by the names of ONNX tensors",
        hint="pass calibration data instead",
    )


def _source_refusal(format: SourceFormat, runtime: Runtime) -> str | None:
    if runtime not in OF_PROGRAMS or format in MODULES:
        return None
    return f"{_CALLED[runtime]} needs a PyTorch program, and the source is {format}"
