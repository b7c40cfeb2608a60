"""The layer report of an engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from farm.reports.base import Report
from farm.specs.shapes import Profile, TensorSpec


class TypeShare(Report):
    """What an engine computes in one type."""

    layers: int = Field(description="convolutions and matrix products")
    share: float | None = Field(
        description="of all multiply-accumulates, 0 to 1; null where a shape isn't known"
    )


class ComputeView(Report):
    """In which types an engine multiplies, at the opt shapes of its first profile."""

    macs: int | None = Field(description="multiply-accumulates of one run; null where unknown")
    types: dict[str, TypeShare] = Field(examples=[{"int8": {"layers": 53, "share": 0.97}}])
    source: Literal["graph", "inspector", "plan", "optimised-graph", "engine"] = Field(
        "graph",
        description="who says so: the typed graph; of the engine itself TensorRT's inspector, the text in "
        "a TensorRT-RTX plan, or the graph that ONNX Runtime has optimised; `engine` is an earlier "
        "farm's word for the inspector",
    )
    found: int | None = Field(
        None,
        description="how many products the engine names; the others are as the typed graph has them",
    )


class LayerTensor(Report):
    name: str
    type: str | None
    shape: list[int] | None = Field(description="-1 is a dynamic axis")
    format: str | None = Field(
        default=None, description="how it lies in memory, in TensorRT's words"
    )


class Layer(Report):
    name: str
    type: str
    inputs: list[LayerTensor]
    outputs: list[LayerTensor]
    kernel: str | None = Field(default=None, description="the tactic that the builder chose")
    operators: list[str] = Field(default=[], description="of the ONNX graph, that it computes")


class ProductView(Report):
    """A convolution or a matrix product."""

    name: str
    op_type: str
    type: str = Field(description="in which it computes")
    macs: int | None
    not_quantized: list[str] = Field(description="its inputs that aren't dequantised tensors")
    typed: str | None = Field(None, description="the graph's type, where the engine's is another")
    layer: str | None = Field(None, description="of the engine, that computes it")


class WeightsView(Report):
    """Constants of one type."""

    parameters: int
    bytes: int


class MemoryView(Report):
    """What an engine takes of a GPU's memory, as TensorRT says; null where it doesn't."""

    context_bytes: int | None = Field(description="of an execution context: activations, workspace")
    context_bytes_by_profile: list[int]
    weights_bytes: int | None
    streamable_weights_bytes: int | None = Field(description="that may stay in the host's memory")
    aux_streams: int | None
    constants: dict[str, int] = Field(
        {}, description="bytes of the constants in the engine by type, where it says so"
    )


#: Of an engine's layer report: some hundred bytes for each layer.
MAX_LAYER_REPORT_BYTES = 32 * 2**20


class LayerReport(Report):
    """What is in an engine."""

    source: str = Field(description="where the layers were read from")
    compute: ComputeView
    products: Annotated[list[ProductView], Field(fail_fast=True)]
    layers: Annotated[list[Layer], Field(fail_fast=True)]
    kinds: dict[str, int] = Field({}, description="kind of layer → how many")
    operators: int | None = Field(None, description="of the typed graph, before any fusion")
    fusions: dict[str, int] = Field(
        {}, description="kind of layer → how many stand for several operators"
    )
    weights: dict[str, WeightsView] = Field({}, description="by type")
    memory: MemoryView | None = None
    inputs: Annotated[list[TensorSpec], Field(fail_fast=True)] = []
    outputs: Annotated[list[TensorSpec], Field(fail_fast=True)] = []
    profiles: Annotated[list[Profile], Field(fail_fast=True)] = []
