"""INT8 calibration of ResNet-50: seconds and peak memory by number of images, the farm beside its peers.

Each measurement has a process of its own (``python -m bench.calibration WHAT IMAGES MODEL``), which prints
its seconds, imports left out, and the most memory that it held. Images are made as they are read, so that
none but a batch is in memory. The forward passes are plain ONNX Runtime over the same images. Peers that
take long, or more memory with each image, stop at fewer images: ``MOST``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.processes import ROOT
from bench.table import Row, row

COUNTS = (32, 128, 512, 1024)
BATCH = 8
FORWARD = "forward passes"
FARM = ("max", "auto", "percentile", "entropy", "mse")
#: Peer → the method of the farm's that it compares with, and the most images it gets.
MOST = {
    "ModelOpt max": ("max", 512),
    "ModelOpt entropy": ("entropy", 128),
    "ONNX Runtime MinMax": ("max", 128),
    "ONNX Runtime Entropy": ("entropy", 32),  # 15 GB for 128
    "NNCF": ("auto", 512),
}
_TIMEOUT_S = 1800.0
#: For all measurements: those that would pass it by the time of the ones before are left out, and told.
_BUDGET_S = float(os.environ.get("FARM_BENCH_BUDGET_S", "3600"))


@dataclass(frozen=True, kw_only=True)
class Cost:
    seconds: float
    processor_s: float  #: of all cores; on a machine with other work it says more
    peak_mb: float


def costs() -> Iterator[Row]:
    """Times over those of the forward passes, and peaks at the most images over those at 128."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "resnet50.onnx"
        _child("write", 0, model)
        measure = _Budget(model)
        forward = measure(FORWARD, COUNTS)
        # First what says most, should the budget end.
        farm = {method: measure(method, COUNTS) for method in FARM}
        for method, by_count in farm.items():
            most = 1.5 if method == "max" else 2.0
            for count, cost in by_count.items():
                name = f"{method}, {count} images, over the forward passes"
                # Fewer images don't outweigh the placement of Q/DQ, which takes the same time for any number.
                goal = most if count == COUNTS[-1] else None
                if count in forward:
                    yield row(name, cost.seconds, forward[count].seconds, " s", digits=2, most=goal)
                    name = f"{name}, of processors"
                    both = cost.processor_s, forward[count].processor_s
                    yield row(name, *both, " s", digits=2)
            if {128, COUNTS[-1]} <= by_count.keys():
                flat = by_count[COUNTS[-1]].peak_mb, by_count[128].peak_mb
                name = f"{method}, peak, 1,024 images over 128"
                yield row(name, *flat, " MB", digits=2, most=1.1)
        for peer, (method, limit) in MOST.items():
            yield from _beside(peer, farm[method], method, limit, measure)


class _Budget:
    """Measures while there is time: what is left out is told."""

    def __init__(self, model: Path) -> None:
        self._model, self._end = model, time.monotonic() + _BUDGET_S

    def __call__(self, what: str, counts: Iterable[int]) -> dict[int, Cost]:
        found: dict[int, Cost] = {}
        for count in counts:
            # Nothing grows faster than with the number of images.
            last = max(found, default=0)
            forecast_s = found[last].seconds * count / last if last else 0.0
            if time.monotonic() + forecast_s > self._end:
                print(f"  {what}, {count} images: left out, the time is up", flush=True)
                continue
            try:
                found[count] = _measured(what, count, self._model)
            except Failed as err:
                print(f"  {what}, {count} images: {err}", flush=True)
                break
        return found


def _beside(
    peer: str, farm: dict[int, Cost], method: str, limit: int, measure: _Budget
) -> Iterator[Row]:
    if peer == "NNCF" and find_spec("nncf") is None:
        print("NNCF isn't installed: pip install 'engine-farm[peers]'", flush=True)
        return
    for count, theirs in measure(peer, [c for c in COUNTS if c <= limit and c in farm]).items():
        ours = farm[count]
        name = f"{method} beside {peer}, {count} images"
        yield row(name, ours.seconds, theirs.seconds, " s", digits=2, most=1)
        yield row(f"{name}, peak", ours.peak_mb, theirs.peak_mb, " MB", digits=2)


class Failed(Exception):
    """A measurement ended without a figure."""


def _measured(what: str, count: int, model: Path) -> Cost:
    cost = Cost(**json.loads(_child(what, count, model).splitlines()[-1]))
    print(
        f"  {what}, {count} images: {cost.seconds:.1f} s, {cost.processor_s:.1f} s of processors, "
        f"{cost.peak_mb:.0f} MB",
        flush=True,
    )
    return cost


def _child(what: str, count: int, model: Path) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.calibration", what, str(count), str(model)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {_TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise Failed(f"ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


class Images:
    """Textured images, made when they are asked for: an array, as far as batches are taken from it."""

    def __init__(self, count: int) -> None:
        from workers.demo import textured_images

        self._base = textured_images(32, seed=0)
        self.shape = (count, *self._base.shape[1:])

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        taken = np.arange(self.shape[0])[rows]
        scale = 0.6 + 0.8 * np.random.default_rng(0).random(self.shape[0], np.float32)[taken]
        return self._base[taken % len(self._base)] * scale[:, None, None, None]

    def batches(self, name: str) -> list[Callable[[], dict[str, NDArray[np.float32]]]]:
        return [
            lambda start=start: {name: self[start : start + BATCH]}  # type: ignore[misc]
            for start in range(0, self.shape[0], BATCH)
        ]


class Reader:
    """Batches as ModelOpt and ONNX Runtime read them."""

    def __init__(self, images: Images, name: str) -> None:
        self._batches, self._at = images.batches(name), 0

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        self._at += 1
        return self._batches[self._at - 1]() if self._at <= len(self._batches) else None

    def get_first(self) -> dict[str, NDArray[np.float32]]:
        return self._batches[0]()

    def rewind(self) -> None:
        self._at = 0

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        return iter(self.get_next, None)


def _write(model: Path) -> None:
    """ResNet-50 with random weights, as the farm exports it."""
    import torch

    from farm.stages import ExportParams, JobKind
    from workers.demo import random_resnet50, save_program, textured_images
    from workers.stages.base import Stage, run

    program = model.with_suffix(".pt2")
    save_program(random_resnet50(textured_images(8, seed=0)), torch.zeros(2, 3, 224, 224), program)
    work = model.parent / "export"
    work.mkdir()
    made = run(
        Stage(
            kind=JobKind.EXPORT,
            params=ExportParams.model_validate({"format": "pt2"}),
            inputs={"source": program},
            workdir=work,
            progress=lambda *_: None,
        )
    )
    made.outputs["onnx"].rename(model)


def _prepared(what: str, images: Images, model: Path) -> Callable[[], object]:
    """What is measured; everything it needs is imported."""
    import onnx

    name = onnx.load(str(model), load_external_data=False).graph.input[0].name
    typed = model.with_name(f"{what.replace(' ', '-')}.onnx")
    if what == FORWARD:
        return lambda: _forward(images, name, model)
    if what in FARM:
        return _farm(what, images, name, model)
    if what == "NNCF":
        import nncf

        dataset = nncf.Dataset(Reader(images, name))
        count = images.shape[0] // BATCH
        return lambda: onnx.save(
            nncf.quantize(onnx.load(str(model)), dataset, subset_size=count), str(typed)
        )
    method = what.split()[-1]
    if what.startswith("ModelOpt"):
        from modelopt.onnx.quantization import quantize

        return lambda: quantize(
            str(model),
            calibration_method=method,
            calibration_data_reader=Reader(images, name),
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(typed),
        )
    from onnxruntime import quantization

    return lambda: quantization.quantize_static(
        str(model),
        str(typed),
        Reader(images, name),
        per_channel=True,
        calibrate_method=quantization.CalibrationMethod[method],
        extra_options={"ActivationSymmetric": True},
    )


def _forward(images: Images, name: str, model: Path) -> None:
    from workers.backends.ort.cpu import OrtModel

    session = OrtModel(model)
    for batch in images.batches(name):
        session.run(batch())


def _farm(method: str, images: Images, name: str, model: Path) -> Callable[[], object]:
    """As the stage does it, from the source's graph to the Q/DQ graph and the ranges of its remainder."""
    import onnx

    from farm.specs.precision import Precision
    from workers.graphs import files, interface
    from workers.inputs.batch import Batch
    from workers.inputs.profiles import resolve_profiles
    from workers.quantize import calibrated, magnitudes, modelopt, placement

    def calibrate() -> None:
        graph = onnx.load(str(model))
        inputs = interface.input_specs(graph)
        batch = Batch.of(inputs, resolve_profiles(inputs, (), interface.axis_ranges(graph))[0])
        with tempfile.TemporaryDirectory() as folder:
            placed = modelopt.placed(graph, {name: images[:2]}, Precision.INT8, Path(folder))
            made = calibrated.calibrate(
                placed,
                {name: images},  # type: ignore[dict-item]
                batch,
                size=BATCH,
                method=method,
                percentile=None,
                precision=Precision.INT8,
                folder=Path(folder),
                seen=lambda _: None,
            )
            extreme = {name: images[made.extreme]}
            known = placement.with_dequantized(placed, made.largest)
            magnitudes.measured(placed, list(batch.split(extreme, BATCH)), Path(folder), known)
            files.save_model(placed, Path(folder) / "calibrated.onnx")

    return calibrate


def main(what: str, count: str, model: str) -> None:
    if what == "write":
        _write(Path(model))
        return
    run = _prepared(what, Images(int(count)), Path(model))
    start, processor = time.perf_counter(), time.process_time()
    run()
    cost = Cost(
        seconds=time.perf_counter() - start,
        processor_s=time.process_time() - processor,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    main(*sys.argv[1:])
