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
from farm.specs.source import MODULES

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
    calibrated = request.calibration is not None or look.may_be_quantized
    for precision in request.precisions:
        if precision in CALIBRATED and not calibrated:
            raise CalibrationMissing(f"{precision} needs calibration data")
    return {
        (choice.target, precision): _route(choice, precision, look)
        for choice in choices
        for precision in request.precisions
    }


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
        if choice.target.runtime in OF_PROGRAMS:
            raise SourceRefused(
                f"{choice.asked}: {_CALLED[choice.target.runtime]} needs a PyTorch program, and the "
                f"source is {request.source.format}",
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
