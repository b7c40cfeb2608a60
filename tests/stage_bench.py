"""A bench that runs stages in this process, and a small network with all that stages make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farm.errors import StageFailed
from farm.specs.runtime import Target
from farm.specs.shapes import ShapeRange
from farm.stages import (
    BuildParams,
    CalibrateParams,
    CastParams,
    ExportParams,
    JobKind,
    MeasureParams,
    StageParams,
)
from workers.stages import base
from workers.stages.base import Stage

CPU = Target(runtime="onnxruntime", gpu="cpu")
KINDS: dict[type[StageParams], JobKind] = {
    ExportParams: JobKind.EXPORT,
    CastParams: JobKind.CAST,
    CalibrateParams: JobKind.CALIBRATE,
    BuildParams: JobKind.BUILD,
    MeasureParams: JobKind.MEASURE,
}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a stage has made, its facts as JSON."""

    outputs: Mapping[str, Path]
    facts: dict[str, Any]


class Bench:
    """Runs stages, each in a new empty folder, and keeps what they reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.phases: list[tuple[str, float | None]] = []
        self._runs = 0

    def run(self, params: StageParams, **inputs: Path) -> Ran:
        self._runs += 1
        workdir = self.folder / f"{self._runs}"
        workdir.mkdir()
        kind = KINDS[type(params)]
        before = {path: path.read_bytes() for path in inputs.values()}
        result = base.run(
            Stage(
                kind=kind,
                params=params,
                inputs=inputs,
                workdir=workdir,
                progress=lambda phase, share: self.phases.append((phase, share)),
            )
        )
        facts = result.facts.model_dump(mode="json")
        json.dumps(facts, allow_nan=False)
        assert all(
            path.parent == workdir and path.stat().st_size for path in result.outputs.values()
        )
        assert before == {path: path.read_bytes() for path in inputs.values()}, (
            "an input was written"
        )
        return Ran(outputs=result.outputs, facts=facts)

    def fails(self, error: type[StageFailed], params: StageParams, **inputs: Path) -> StageFailed:
        with pytest.raises(error) as caught:
            self.run(params, **inputs)
        assert caught.value.hint, "the message doesn't say what to do"
        return caught.value


@dataclass(frozen=True, kw_only=True)
class Digits:
    source: Path
    calibration: Path
    evaluation: Path
    exported: Ran
    fp16: Ran
    calibrated: Ran

    @property
    def onnx(self) -> Path:
        return self.exported.outputs["onnx"]

    @property
    def int8(self) -> Path:
        return self.calibrated.outputs["typed"]

    @property
    def for_cpu(self) -> dict[str, Path]:
        return {"typed": self.int8, "onnx": self.onnx, "calibration": self.calibration}

    @property
    def int8_fp16(self) -> Path:
        return self.calibrated.outputs["typed_fp16"]


def staged_digits(folder: Path) -> Digits:
    """Learn digits for a moment, and run the stages before a build on what was learned."""
    import torch

    from workers import demo

    train, held_out = demo.digits_split()
    source = folder / "digits.pt2"
    demo.save_program(demo.train_digits(train, epochs=6), torch.zeros(2, 1, 8, 8), source)
    bench = Bench(folder)
    exported = bench.run(ExportParams(format="pt2"), source=source)
    graph = exported.outputs["onnx"]
    calibration = save_npz(folder / "calibration.npz", image=train["image"][:64])
    return Digits(
        source=source,
        calibration=calibration,
        evaluation=save_npz(folder / "evaluation.npz", **held_out),
        exported=exported,
        fp16=bench.run(CastParams(precision="fp16"), onnx=graph),
        calibrated=bench.run(CalibrateParams(), onnx=graph, calibration=calibration),
    )


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def batch_profile(low: int, opt: int, high: int) -> dict[str, ShapeRange]:
    shapes = {"min": (low, 1, 8, 8), "opt": (opt, 1, 8, 8), "max": (high, 1, 8, 8)}
    return {"image": ShapeRange(**shapes)}


IMAGE = np.random.default_rng(1).uniform(0, 1, (32, 1, 8, 8)).astype(np.float32)


def rtx(gpu: str, precision: str = "fp32", **options: Any) -> BuildParams:
    target = Target(runtime="tensorrt-rtx", gpu=gpu)
    return BuildParams(target=target, compute_capability=gpu, precision=precision, **options)


def measured(precision: str, **options: Any) -> MeasureParams:
    return MeasureParams(precision=precision, format="pt2", **options)
