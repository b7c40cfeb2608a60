"""The stages of a build, each one function ``run(stage) -> StageResult`` in a module of its own.

A stage runs in a child process of its own, in a private empty folder. It reads ``stage.inputs``,
writes files below ``stage.workdir``, and returns which of them are its outputs. A failure that the
user can act on is raised as a ``farm.errors.StageFailed`` with a hint; anything else is a bug.
Whatever a stage prints is the job's log.

Roles of files, by stage:

========== ============================================= ======================================
stage      inputs                                        outputs
========== ============================================= ======================================
prune      source                                        source
export     source                                        onnx
cast       onnx                                          typed
calibrate  onnx, calibration                             typed (fp32 remainder), typed_fp16,
                                                         typed_half (fp16, or bf16 for its range)
build      typed, [onnx, calibration],                   engine, layers, [timing_cache]
           [timing_cache], [plugin-0, …]
build      source, for TorchScript                       engine, layers
measure    source, [typed], [engine], [evaluation],      report
           [calibration]
========== ============================================= ======================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from farm.specs import PARAMS, BuilderOptions, JobKind, StageParams


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage to run."""

    kind: JobKind
    params: StageParams
    inputs: Mapping[str, Path]  #: role → a file to read, never to write
    workdir: Path  #: private, and empty but for inputs
    progress: Callable[[str, float | None], None]  #: phase, and the share done in 0…1 or None
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext  #: others pause, to time by

    def plugins(self, options: BuilderOptions) -> list[Path]:
        """The plugin libraries that these options name, verified."""
        return [self.inputs[f"plugin-{number}"] for number in range(len(options.plugins))]


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage made."""

    outputs: Mapping[str, Path]  #: role → a file below the workdir
    facts: Mapping[str, Any] = field(default_factory=dict)  #: JSON: what is recorded of the job


class StageRequest(BaseModel):
    """A stage to run, as it is handed to a child process or kept to be run by hand."""

    kind: JobKind
    params: dict[str, Any]
    inputs: dict[str, Path]
    workdir: Path


def run_request(
    request: StageRequest,
    progress: Callable[[str, float | None], None],
    quiet: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Any]:
    """Run a stage and return its outputs' paths and its facts, as JSON.

    Raises:
        StageFailed: with what the user can do about it.
    """
    result = run(
        Stage(
            kind=request.kind,
            params=PARAMS[request.kind].model_validate(request.params),
            inputs=request.inputs,
            workdir=request.workdir,
            progress=progress,
            quiet=quiet,
        )
    )
    return {
        "outputs": {role: str(path) for role, path in result.outputs.items()},
        "facts": dict(result.facts),
    }


def run(stage: Stage) -> StageResult:
    """Run one stage in this process.

    Raises:
        StageFailed: with what the user can do about it.
    """
    module = import_module(f"workers.stages.{stage.kind}")
    result: StageResult = module.run(stage)
    return result
