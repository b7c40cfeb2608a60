"""The calibrators that ``bench.calibration`` measures, each in a process of its own.

``python -m bench.calibrators WHAT IMAGES MODEL`` prints the seconds that it took, imports left out, and the
most memory that it held. Images are made as they are read, so that none but a batch is in memory. The forward
passes are plain ONNX Runtime over the same images.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 8
FORWARD = "forward passes"
FARM = ("max", "auto", "percentile", "entropy", "mse")


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
    found = {
        "seconds": time.perf_counter() - start,
        "processor_s": time.process_time() - processor,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
