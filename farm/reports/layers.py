"""An engine's layer report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from farm.reports.base import Report
from farm.specs.shapes import Profile, TensorSpec


class TypeShare(Report):
    """What an engine computes in one type."""

    layers: int = Field(description="number of convolutions and matrix products")
    share: float | None = Field(
        description="share of all multiply-accumulates, 0 to 1; null if a shape is unknown"
    )


class ComputeView(Report):
    """In which types an engine multiplies, at the opt shapes of its first profile."""

    macs: int | None = Field(description="multiply-accumulates per run; null if unknown")
    types: dict[str, TypeShare] = Field(examples=[{"int8": {"layers": 53, "share": 0.97}}])
    source: Literal["graph", "inspector", "plan", "optimised-graph", "engine"] = Field(
        "graph",
        description="the source: the typed graph, or for the engine itself TensorRT's inspector, the text in "
        "a TensorRT-RTX plan, or ONNX Runtime's optimised graph; `engine` is an earlier "
        "farm's name for the inspector",
    )
    found: int | None = Field(
        None,
        description="number of products found in the engine; the others are taken from the typed graph",
    )
    ran: dict[str, float] | None = Field(
        None,
        description="share of the GPU's time in convolutions and matrix products, by the type of the "
        "kernels that ran, as a profiler saw them; null if none watched",
        examples=[{"fp8": 0.81, "fp16": 0.19}],
    )


class LayerTensor(Report):
    name: str
    type: str | None
    shape: list[int] | None = Field(description="-1 is a dynamic axis")
    format: str | None = Field(default=None, description="memory layout, as TensorRT names it")


class Layer(Report):
    name: str
    type: str
    inputs: list[LayerTensor]
    outputs: list[LayerTensor]
    kernel: str | None = Field(default=None, description="the tactic chosen by the builder")
    operators: list[str] = Field(default=[], description="the ONNX operators it computes")
    microseconds: float | None = Field(default=None, description="GPU time of one run, if profiled")


class ProductView(Report):
    """A convolution or a matrix product."""

    name: str
    op_type: str
    type: str = Field(description="the type it computes in")
    macs: int | None
    not_quantized: list[str] = Field(description="inputs that aren't dequantised tensors")
    typed: str | None = Field(None, description="the graph's type, if it differs from the engine's")
    layer: str | None = Field(None, description="the engine layer that computes it")


class WeightsView(Report):
    """Constants of one type."""

    parameters: int
    bytes: int


class MemoryView(Report):
    """GPU memory an engine takes, as TensorRT reports it; null where it does not."""

    context_bytes: int | None = Field(description="per execution context: activations, workspace")
    context_bytes_by_profile: list[int]
    weights_bytes: int | None
    streamable_weights_bytes: int | None = Field(description="weights that may stay in host memory")
    aux_streams: int | None
    constants: dict[str, int] = Field(
        {}, description="bytes of the engine's constants by type, if reported"
    )


#: Limit for an engine's layer report: a few hundred bytes per layer.
MAX_LAYER_REPORT_BYTES = 32 * 2**20


class LayerReport(Report):
    """What is in an engine."""

    source: str = Field(description="where the layers were read from")
    compute: ComputeView
    products: Annotated[list[ProductView], Field(fail_fast=True)]
    layers: Annotated[list[Layer], Field(fail_fast=True)]
    kinds: dict[str, int] = Field({}, description="kind of layer → count")
    operators: int | None = Field(None, description="number in the typed graph, before fusion")
    fusions: dict[str, int] = Field(
        {}, description="kind of layer → count of layers that fuse several operators"
    )
    weights: dict[str, WeightsView] = Field({}, description="by type")
    memory: MemoryView | None = None
    inputs: Annotated[list[TensorSpec], Field(fail_fast=True)] = []
    outputs: Annotated[list[TensorSpec], Field(fail_fast=True)] = []
    profiles: Annotated[list[Profile], Field(fail_fast=True)] = []
