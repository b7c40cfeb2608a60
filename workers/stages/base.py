"""The stages of a build, each a function ``run(stage) -> StageResult`` in its own module.

A stage runs in its own child process, in a private empty folder. It reads ``stage.inputs``, writes files
below ``stage.workdir``, and returns which of them are its outputs. A failure that the user can act on is
raised as a ``farm.errors.StageFailed``, ``from`` the library's error: the hint then comes from
``workers.failures.known``. Anything else is a bug and becomes a ``StageFault`` at the boundary.
Whatever a stage prints is the job's log.

Roles of files, by stage:

========== ============================================= ======================================
stage      inputs                                        outputs
========== ============================================= ======================================
prune      source                                        source
export     source                                        onnx
cast       onnx                                          typed
calibrate  onnx, calibration, [evaluation]; or onnx,     typed (fp32 remainder), typed_fp16,
           ranges, [evaluation]                          typed_half (fp16, and bf16 for its range)
build      typed, [onnx, calibration],                   engine, layers, [timing_cache]
           [timing_cache], [plugin-0, …]
build      source, for TorchScript; for AOTInductor      engine, layers
           also [calibration] or [evaluation]
measure    source, [typed], [engine], [evaluation],      report
           [calibration]
infer      engine, inputs                                outputs
========== ============================================= ======================================
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from farm.errors import BlobDamaged, StageFailed
from farm.specs import faults
from farm.specs.options import BuilderOptions
from farm.stages import STAGES, Facts, JobKind, ReportProgress, StageParams
from workers.failures.asked import Asked
from workers.failures.explained import explained

_TEXT_CHARS = 2000  #: of one string among the facts


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage to run."""

    kind: JobKind
    params: StageParams
    inputs: Mapping[str, Path]  #: role → file, read-only
    workdir: Path  #: private, and empty except for inputs
    progress: ReportProgress
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext  #: pauses other jobs
    timing_share: float = 1.0  #: of the usual time, for which an engine on a CPU is timed

    def plugins(self, options: BuilderOptions) -> list[Path]:
        """The plugin libraries that these options name, verified."""
        return [self.inputs[f"plugin-{number}"] for number in range(len(options.plugins))]


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A stage's outputs and facts."""

    outputs: Mapping[str, Path]  #: role → a file below the workdir
    facts: Facts = field(default_factory=Facts)  #: recorded with the job


class StageRequest(BaseModel):
    """A stage to run, as passed to a child process or kept for a run by hand."""

    kind: JobKind
    params: dict[str, Any]
    inputs: dict[str, Path]
    workdir: Path
    digests: dict[str, str] = {}  #: role → the input's expected digest
    timing_share: float = 1.0


def run_request(
    request: StageRequest,
    progress: ReportProgress,
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    """Run a stage and return its outputs' paths and its facts, as JSON.

    Raises:
        StageFailed: its hint says what the user can do.
        BlobDamaged: an input doesn't match its digest.
    """
    _verify(request, progress)
    try:
        params = STAGES[request.kind].params.model_validate(request.params)
    except ValidationError as err:
        raise StageFailed(
            f"this worker doesn't understand the {request.kind} job's request: "
            f"{'; '.join(faults.told(one) for one in err.errors())}",
            hint="run the same version of the farm on the API and the workers (farm --version)",
        ) from err
    result = run(
        Stage(
            kind=request.kind,
            params=params,
            inputs=request.inputs,
            workdir=request.workdir,
            progress=progress,
            quiet=quiet,
            timing_share=request.timing_share,
        )
    )
    return {
        "outputs": {role: str(path) for role, path in result.outputs.items()},
        "facts": shortened(result.facts.model_dump(mode="json")),
    }


def shortened(value: Any) -> Any:
    """Shorten the long texts that libraries give as reasons: the log has them in full."""
    if isinstance(value, str):
        return value if len(value) <= _TEXT_CHARS else f"{value[: _TEXT_CHARS - 1]}…"
    if isinstance(value, Mapping):
        return {name: shortened(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(one) for one in value]
    return value


def _verify(request: StageRequest, progress: ReportProgress) -> None:
    if request.digests:
        progress("verify inputs", None)
    for role, digest in request.digests.items():
        with request.inputs[role].open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if found != digest:
            raise BlobDamaged(f"{role} {digest} is damaged in the store: its bytes are {found}")


def run(stage: Stage) -> StageResult:
    """Run one stage in this process.

    Raises:
        StageFailed: its hint says what the user can do; or a ``StageFault``, for which the log has the
            traceback and the request that repeats it.
        StorageFull: there was no room for its outputs.
    """
    try:
        module = import_module(f"workers.stages.{stage.kind}")
        result: StageResult = module.run(stage)
    except Exception as err:
        told = explained(err, Asked.of(stage.kind, stage.params, stage.inputs))
        if told is err:
            raise
        traceback.print_exception(err)
        print(
            f"to reproduce it: python -m workers.stages FILE, with this in FILE\n{_request_of(stage)}"
        )
        raise told from err
    return result


def _request_of(stage: Stage) -> str:
    request = StageRequest(
        kind=stage.kind,
        params=stage.params.model_dump(mode="json"),
        inputs=dict(stage.inputs),
        workdir=stage.workdir,
        timing_share=stage.timing_share,
    )
    return request.model_dump_json()
