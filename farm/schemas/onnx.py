"""A version's ONNX, for a GPU or a machine that no engine is for."""

from __future__ import annotations

from pydantic import Field

from farm.schemas.base import Answer, Digest
from farm.specs.precision import Precision


class OnnxFile(Answer):
    """A version's ONNX in the types of a precision; its bytes are at ``/v1/models/{model}/onnx/content``."""

    model: str
    version: int
    precision: Precision | None = Field(description="null for the exported ONNX, as the source is")
    digest: Digest
    bytes: int
    file_name: str = Field(examples=["digits-v7-fp16.onnx"])
    why: str = Field(description="which version it is of, and why")
    build: str = Field(
        description="the command that builds an engine from it where TensorRT is, with the shapes of the "
        "version's newest build"
    )
