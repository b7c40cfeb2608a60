"""Exports the source as one ONNX file, checked against the source."""

from workers.stages.export.stage import run as run
