"""Build: makes the engine for one target, from a typed ONNX graph or the program itself."""

from workers.stages.build.stage import run as run
