"""What an engineer would write without the farm: ResNet-50 to fp16 and int8 engines for one GPU.

``python -m bench.plain_script DEMO_DIR OUT_DIR``: the same steps as the farm's, with the same
settings, in one process that calls torch, ModelOpt, ONNX Runtime and TensorRT-RTX directly.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tensorrt_rtx as trt
import torch
from modelopt.onnx.autocast.convert import convert_to_f16, convert_to_mixed_precision
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization.calibrate import CalibrationDataReader

BATCH = 8


class Reader(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._batches = [{"image": images[i : i + BATCH]} for i in range(0, len(images), BATCH)]
        self.rewind()

    def get_next(self):
        return next(self._rest, None)

    def get_first(self):
        return self._batches[0]

    def rewind(self) -> None:
        self._rest = iter(self._batches)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def build(path: Path, engine: Path) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 3, 224, 224), (8, 3, 224, 224), (64, 3, 224, 224))
    config.add_optimization_profile(profile)
    engine.write_bytes(bytes(builder.build_serialized_network(network, config)))


def main(demo: Path, out: Path) -> None:
    program = torch.export.load(demo / "resnet50.pt2")
    module = program.module()
    fp32 = out / "fp32.onnx"
    torch.onnx.export(program, dynamo=True, opset_version=20, optimize=True).save(str(fp32))
    exported = session(fp32)
    for batch in (1, 2):
        image = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
        with torch.inference_mode():
            expected = module(torch.from_numpy(image)).numpy()
        given = exported.run(None, {exported.get_inputs()[0].name: image})[0]
        print("largest error", np.abs(given - expected).max())
    name = exported.get_inputs()[0].name
    assert name == "image"

    fp16 = out / "fp16.onnx"
    sample = np.random.default_rng(0).standard_normal((BATCH, 3, 224, 224), np.float32)
    onnx.save(
        convert_to_mixed_precision(
            str(fp32),
            low_precision_type="fp16",
            keep_io_types=True,
            calibration_data={name: sample},
            providers=["cpu"],
        ),
        fp16,
    )
    qdq, int8 = out / "qdq.onnx", out / "int8.onnx"
    quantize(
        str(fp32),
        quantize_mode="int8",
        calibration_method="entropy",
        calibration_data_reader=Reader(np.load(demo / "resnet50-calibration.npz")["image"]),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(qdq),
    )
    onnx.save(convert_to_f16(onnx.load(qdq), low_precision_type="fp16", keep_io_types=True), int8)

    images = np.load(demo / "resnet50-evaluation.npz")["image"]
    for typed in (fp16, int8):
        build(typed, typed.with_suffix(".engine"))
        runner, agreed = session(typed), 0
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            with torch.inference_mode():
                expected = module(torch.from_numpy(batch)).numpy()
            given = runner.run(None, {name: batch})[0]
            agreed += int((expected.argmax(1) == given.argmax(1)).sum())
        print(typed.stem, "top-1 agreement", agreed / len(images))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
