"""Decides whether a request can be built: every engine's route, or why it has none. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from farm.errors import CalibrationMissing, SourceRefused, TargetUnsupported
from farm.formats.sources import Look
from farm.planning import policy
from farm.planning.policy import Refusal, Route
from farm.planning.targets import Choice
from farm.schemas.submission import BuildRequest
from farm.specs.precision import CALIBRATED, Precision
from farm.specs.runtime import OF_PROGRAMS, Runtime, Target
from farm.specs.source import MODULES, SourceFormat

_CALLED = {Runtime.AOTINDUCTOR: "AOTInductor", Runtime.TORCHSCRIPT: "TorchScript"}

Routes = Mapping[tuple[Target, Precision], Route]


def routes(request: BuildRequest, choices: Sequence[Choice], look: Look) -> Routes:
    """How each engine of a request is made.

    Parameters:
        look: what is known about the source's graph.

    Raises:
        TargetUnsupported: a target lacks a precision.
        CalibrationMissing: INT8 or FP8 without data, for a source that isn't quantised.
        SourceRefused: the source should be pruned and can't be.
    """
    _check_source(request, choices)
    _check_options(request, choices)
    pairs = [(choice, one) for choice in choices for one in choice.of(request.precisions)]
    for _, precision in pairs:
        if precision in CALIBRATED and not _is_calibrated(request, look):
            raise CalibrationMissing(f"{precision} needs calibration data")
    return {
        (choice.target, precision): _route(choice, precision, look) for choice, precision in pairs
    }


def refusal(request: BuildRequest, target: Target, precision: Precision, look: Look) -> str | None:
    """Why one engine can't be built from this source and these data, or None if it can.

    What isn't known before its jobs run isn't told: a model may lack what a precision needs.
    """
    if precision in CALIBRATED and not _is_calibrated(request, look):
        uncalibrated = f"{precision} needs calibration data"
    else:
        uncalibrated = None
    route = policy.route(target, precision, look.operators)
    return (
        policy.refusal(target)
        or _source_refusal(request.source.format, target.runtime)
        or policy.option_refusal(target, request.options)
        or (route if isinstance(route, Refusal) else None)
        or uncalibrated
    )


def _is_calibrated(request: BuildRequest, look: Look) -> bool:
    return request.calibration is not None or look.may_be_quantized


def _source_refusal(format: SourceFormat, runtime: Runtime) -> str | None:
    if runtime not in OF_PROGRAMS or format in MODULES:
        return None
    return f"{_CALLED[runtime]} needs a PyTorch program, and the source is {format}"


def _check_source(request: BuildRequest, choices: Sequence[Choice]) -> None:
    if request.source.format in MODULES:
        return
    if request.prune:
        raise SourceRefused(
            f"pruning needs a PyTorch program, and the source is {request.source.format}",
            hint="submit the torch.export program it was exported from, or prune the model before "
            "exporting it and submit without prune",
        )
    for choice in choices:
        reason = _source_refusal(request.source.format, choice.target.runtime)
        if reason:
            raise SourceRefused(
                f"{choice.asked}: {reason}",
                hint=f"use onnxruntime:{choice.target.gpu}, or submit the torch.export program",
            )


def _check_options(request: BuildRequest, choices: Sequence[Choice]) -> None:
    for choice in choices:
        reason = policy.option_refusal(choice.target, request.options)
        if reason:
            raise TargetUnsupported(
                f"{choice.asked}: {reason}", hint="submit that target in a separate build"
            )


def _route(choice: Choice, precision: Precision, look: Look) -> Route:
    route = policy.route(choice.target, precision, look.operators)
    if isinstance(route, Refusal):
        raise TargetUnsupported(
            f"{precision} for {choice.asked}: {route}",
            hint="leave out that pair, or submit the target with other precisions in a separate build",
        )
    return route
