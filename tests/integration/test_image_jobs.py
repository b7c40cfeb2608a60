"""Jobs on a tar of images: what they make is what they make of the same samples as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from farm.errors import InvalidData
from farm.specs.preprocess import Preprocess
from farm.stages import BuildParams, CalibrateParams, CastParams, ExportParams
from tests.images import encoded, npy
from tests.stage_bench import CPU, Bench, Digits, measured
from tests.tars import tarred

#: Undoes ``level``: what comes out are the very values of the arrays.
GRAY = Preprocess(channels="gray", scale=1 / 240)


def level(images: Any) -> Any:
    """Images of 0, 1/16, …, 1 as the levels of a file."""
    return (images * 240).round().astype(np.uint8)


def tar_of(path: Path, arrays: Path) -> Path:
    """The arrays as a tar of images, with its labels if they have any."""
    given = np.load(arrays)
    files = {f"{n:05}.png": encoded(image[0]) for n, image in enumerate(level(given["image"]))}
    if "label" in given:
        files["labels.csv"] = "".join(
            f"{n:05}.png,{label}\n" for n, label in enumerate(given["label"])
        ).encode()
    return tarred(path, files)


def test_a_calibration_with_images_is_that_with_their_arrays(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    images = tar_of(tmp_path / "images.tar", digits.calibration)
    made = bench.run(CalibrateParams(preprocess=GRAY), onnx=digits.onnx, calibration=images)
    assert made.facts["samples"] == 64
    assert made.outputs["typed"].read_bytes() == digits.int8.read_bytes()
    assert made.outputs["typed_fp16"].read_bytes() == digits.int8_fp16.read_bytes()


def test_every_stage_takes_images(bench: Bench, digits: Digits, tmp_path: Path) -> None:
    images = tar_of(tmp_path / "images.tar", digits.calibration)
    labelled = tar_of(tmp_path / "labelled.tar", digits.evaluation)
    exported = bench.run(
        ExportParams(format="pt2", preprocess=GRAY), source=digits.source, calibration=images
    )
    assert exported.facts["check"]["data"] == "calibration"
    cast = bench.run(
        CastParams(precision="fp16", preprocess=GRAY), onnx=digits.onnx, evaluation=labelled
    )
    assert cast.facts["data"] == "evaluation"
    params = {"target": CPU, "compute_capability": "cpu", "precision": "int8"}
    of_arrays = bench.run(BuildParams(**params), **digits.for_cpu)
    of_images = bench.run(
        BuildParams(**params, preprocess=GRAY), **digits.for_cpu | {"calibration": images}
    )
    engine = of_images.outputs["engine"]
    assert engine.read_bytes() == of_arrays.outputs["engine"].read_bytes()
    inputs = {"source": digits.source, "typed": digits.int8, "engine": engine}
    by_arrays, by_images = (
        bench.run(measured("int8", target=CPU, preprocess=how), **inputs, evaluation=data)
        for how, data in ((None, digits.evaluation), (GRAY, labelled))
    )
    assert by_images.facts["accuracy"] == by_arrays.facts["accuracy"]
    assert by_images.facts["accuracy"]["task"]["source"] > 0.8


def test_a_damaged_image_fails_the_job_by_its_name(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    files = {f"{n}.png": encoded(np.full((8, 8), n, np.uint8)) for n in range(40)}
    files["7.png"] = files["7.png"][:45]
    images = tarred(tmp_path / "images.tar", files)
    params = CalibrateParams(preprocess=GRAY)
    error = bench.fails(InvalidData, params, onnx=digits.onnx, calibration=images)
    assert "the image '7.png' can't be decoded" in error.detail


def test_labels_of_other_images_than_there_are_fail_the_job(
    bench: Bench, digits: Digits, tmp_path: Path
) -> None:
    files = {f"{n}.png": encoded(np.full((8, 8), n, np.uint8)) for n in range(4)}
    images = tarred(tmp_path / "images.tar", files | {"labels.npy": npy(np.arange(3))})
    error = bench.fails(
        InvalidData,
        measured("fp32", preprocess=GRAY),
        source=digits.source,
        typed=digits.onnx,
        evaluation=images,
    )
    assert "'label' is int64[3], but integers for each of 4 samples are required" in error.detail
