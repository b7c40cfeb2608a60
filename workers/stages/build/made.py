"""A runtime's output, and what the engine itself reports about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from farm.reports.layers import Layer, LayerReport, MemoryView
from farm.reports.provider import ProviderChoice
from farm.specs.precision import Precision
from farm.specs.shapes import Profile, TensorSpec
from workers.backends.trt import interface as trt_interface
from workers.backends.trt.inspector import Inspected
from workers.backends.trt.interface import Interface
from workers.backends.trt.rtx_plan import RtxPlan
from workers.backends.trt.timing_cache import TimingCacheUse
from workers.graphs.compute import Compute
from workers.graphs.interface import input_specs, output_specs
from workers.inputs.batch import Shapes
from workers.report import engine_types, layers, optimised


@dataclass(frozen=True, kw_only=True)
class Made:
    engine: Path
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    build_s: float
    layers: Sequence[Layer]
    layers_source: str
    timing_cache: TimingCacheUse | None = None
    inspected: Inspected | None = None
    optimised: onnx.ModelProto | None = None  #: ONNX Runtime's graph
    read: RtxPlan | None = None  #: TensorRT-RTX's plan
    interface: Interface | None = None  #: if TensorRT reports its own
    fusions: Mapping[str, int] | None = None  #: if the layers don't show them
    provider: ProviderChoice | None = None  #: ONNX Runtime's, on a GPU

    @property
    def memory(self) -> MemoryView | None:
        told = self.inspected or self.read
        return told.memory if told else None


@dataclass(frozen=True, kw_only=True)
class Said:
    """The types the products compute in, and the source of this."""

    compute: Compute
    source: str
    found: int | None = None  #: number of products that the engine names


def of_engine(
    precision: Precision, compute: Compute, made: Made, model: onnx.ModelProto, opt: Shapes
) -> Said:
    """What the engine itself reports about the graph's products, if it can be read.

    Raises:
        PrecisionMissed
    """
    if made.inspected:
        found_in, found = engine_types.of_engine(compute, made.inspected.layers, model)
        said = Said(compute=found_in, source="inspector", found=found)
    elif made.read:
        found_in, found = engine_types.of_plan(compute, made.read)
        said = Said(compute=found_in, source="plan", found=found)
    elif made.optimised:
        found_in = optimised.compute_of_engine(made.optimised, opt, compute)
        return Said(compute=found_in, source=optimised.SOURCE)
    else:
        return Said(compute=compute, source="graph")
    total = len(compute.products)
    print(f"{said.found} of {total} convolutions and matrix products found in the engine's layers")
    engine_types.check_engine(precision, said.compute)
    return said


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The engine's inputs and outputs."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    differences: Sequence[str]  #: to the typed graph's


def interface_of(made: Made, model: onnx.ModelProto, typed: onnx.ModelProto) -> Ends:
    """The runtime's interface, or else the built graph's, compared with the typed graph's."""
    inputs, outputs = input_specs(model), output_specs(model)
    if made.interface is not None:
        inputs, outputs = made.interface.inputs, made.interface.outputs
    taken, other = trt_interface.named(inputs, input_specs(typed))
    given, others = trt_interface.named(outputs, output_specs(typed))
    differences = [*(f"input {one}" for one in other), *(f"output {one}" for one in others)]
    for one in differences:
        print(f"otherwise than in the model: {one}")
    return Ends(inputs=taken, outputs=given, differences=differences)


def report_of(
    made: Made, model: onnx.ModelProto, profiles: Sequence[Profile], said: Said, ends: Ends
) -> LayerReport:
    more: dict[str, object] = {} if made.fusions is None else {"fusions": made.fusions}
    return layers.report(
        made.layers,
        said.compute,
        model,
        compute_source=said.source,
        found=said.found,
        source=made.layers_source,
        memory=made.memory,
        profiles=profiles,
        inputs=ends.inputs,
        outputs=ends.outputs,
        **more,
    )
