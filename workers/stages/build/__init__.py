"""Build: the engine of one target, from a typed ONNX graph or from the program itself."""

from workers.stages.build.stage import run as run
