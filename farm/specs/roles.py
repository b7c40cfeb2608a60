"""File roles: a stage's inputs and outputs."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a file is to a job."""

    SOURCE = "source"
    CALIBRATION = "calibration"
    EVALUATION = "evaluation"
    RANGES = "ranges"  #: TensorRT's calibration cache, in place of calibration data
    ONNX = "onnx"
    TYPED = "typed"  #: ONNX in a precision's types; if quantised, the rest in fp32
    TYPED_FP16 = "typed_fp16"  #: quantised, the rest in fp16
    TYPED_HALF = "typed_half"  #: quantised, the rest in fp16, or bf16 for its range
    HISTOGRAMS = "histograms"  #: of what was calibrated, and the ranges taken
    ENGINE = "engine"
    LAYERS = "layers"  #: the layer report
    TIMING_CACHE = "timing_cache"  #: TensorRT's
    PEERS = "peers"  #: PyTorch's figures, which a worker keeps from one measurement for the next
    REPORT = "report"
    INPUTS = "inputs"  #: arrays to run an engine on
    OUTPUTS = "outputs"  #: what it gave

    @property
    def in_words(self) -> str:
        return _WORDS.get(self, self.value)


_WORDS = {
    Role.SOURCE: "the source",
    Role.CALIBRATION: "calibration data",
    Role.EVALUATION: "evaluation data",
    Role.RANGES: "the calibration cache",
    Role.ONNX: "the exported ONNX",
    Role.TYPED: "the typed ONNX",
    Role.ENGINE: "the engine",
    Role.INPUTS: "the inputs",
}

#: Roles uploaded with a submission.
GIVEN = (Role.SOURCE, Role.CALIBRATION, Role.EVALUATION)
