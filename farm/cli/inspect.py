"""``farm inspect``: an engine's contents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import quantised, show
from farm.cli.options import Json, Url, again, connect, example
from farm.errors import InvalidRequest
from farm.specs.counted import counted

if TYPE_CHECKING:
    from farm.reports.description import TimingCacheUse
    from farm.reports.layers import Layer, LayerReport, LayerTensor
    from farm.schemas.engines import EngineView
    from farm.specs.precision import Precision
    from farm.specs.shapes import Profile


def register(app: typer.Typer) -> None:
    text = "farm inspect 06gm2vw9k3xq4t7n"
    app.command("inspect", rich_help_panel="Engines", epilog=example(text))(inspect)


_LAYERS = 40
_NAMED = 10
_OPERANDS = 2  #: of a product; later inputs are biases and scales


def inspect(
    engine: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE",
            help="An engine's id, or its first characters: farm engines MODEL lists them.",
        ),
    ],
    all_layers: Annotated[
        bool, typer.Option("--all", help=f"List all layers instead of the first {_LAYERS}.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE.svg",
            help="Only write a picture of how it was quantised: signal to noise by layer, ranges over "
            "histograms, and what was tried to keep an accuracy.",
        ),
    ] = None,
    tensor: Annotated[
        str | None,
        typer.Option("--tensor", metavar="NAME", help="With --picture: this tensor's range alone."),
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show an engine's accuracy, inputs, compute types, quantisation, weights, memory, fusions and layers.

    --json has the layer report, with the registry's entry as `engine` and all that is known of its
    calibration as `quantization`.
    """
    farm = connect(url)
    if tensor is not None and picture is None:
        raise InvalidRequest("--tensor has no picture", hint="pass --picture FILE.svg with it")
    if picture is not None:
        quantised.draw(farm, engine, tensor, picture, as_json=as_json)
        return
    report = farm.layers(engine)
    row = farm.engine(engine)
    calibration = quantised.known(farm, row)
    if as_json:
        more = {"engine": row, "quantization": calibration}
        show.document(report.model_dump(mode="json") | more)
        return
    show.line(
        f"{row.model} v{row.version} {show.precision(row.precision, row.prune)} for {row.runtime}:{row.gpu}, "
        f"{row.runtime} {row.runtime_version}, {show.size(row.bytes)}"
    )
    changed = row.options.changed() if row.options else {}
    if changed:
        show.line("built with " + ", ".join(f"{n}={_value(v)}" for n, v in changed.items()))
    for line in quantised.lines(row):
        show.line(line)
    _provider(row)
    _interface(row)
    _compute(report, row.precision)
    if calibration is not None:
        quantised.details(calibration)
    _memory(report, row)
    if row.timing_cache:
        show.line(_timing_cache(row.timing_cache))
    show.line(f"{counted(len(report.layers), 'layer')} from {report.source}")
    _kinds(report)
    listed = report.layers if all_layers else report.layers[:_LAYERS]
    _list(listed)
    if len(listed) < len(report.layers):
        show.line(
            f"… {len(report.layers) - len(listed)} more: {again(f'farm inspect {engine} --all', url)}"
        )


def _list(layers: Sequence[Layer]) -> None:
    rows = [
        (
            str(n),
            one.type,
            " × ".join(tensor.type or "?" for tensor in one.inputs[:_OPERANDS]) or show.NONE,
            _tensors(one.outputs),
            one.kernel or show.NONE,
            one.name,
        )
        for n, one in enumerate(layers, start=1)
    ]
    headers = ("layer", "type", "takes", "gives", "kernel", "name")
    show.table(headers, rows, keep=("layer", "type", "takes"))


def _provider(row: EngineView) -> None:
    """How to run an ONNX Runtime engine on its GPU, and what that was chosen from."""
    found = row.provider
    if found is None:
        return
    fused = (
        f", attention fused in {counted(found.fused_attention, 'place')}"
        if found.fused_attention
        else ""
    )
    show.line(f"runs with {_options(found.options)}{fused}")
    for one in found.tried:
        fused = " and fused attention" if one.fused_attention else ""
        graph = " in a CUDA graph" if one.cuda_graph else ""
        timed = "" if one.p50_ms is None else f"{show.milliseconds(one.p50_ms)}{graph}"
        said = ", ".join(filter(None, (timed, one.reason)))
        show.line(f"  tried {_options(one.options)}{fused}: {said}")


def _options(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _value(option: object) -> str:
    return ",".join(map(str, option)) if isinstance(option, tuple) else str(option).lower()


def _interface(row: EngineView) -> None:
    rows = [
        (
            way,
            spec.name,
            spec.dtype,
            _shape(spec.shape),
            "; ".join(_range(p, spec.name) for p in of),
        )
        for way, specs, of in (("input", row.inputs, row.profiles), ("output", row.outputs, ()))
        for spec in specs
    ]
    show.table(("", "name", "type", "shape", "min:opt:max"), rows, keep=("", "name", "type"))
    for one in row.differences or ():
        show.line(f"otherwise than in the model: {one}")


def _shape(shape: Sequence[int | str] | None) -> str:
    return "?" if shape is None else "×".join(str("?" if size == -1 else size) for size in shape)


def _range(profile: Profile, name: str) -> str:
    shapes = profile[name]
    return ":".join("x".join(map(str, shape)) for shape in (shapes.min, shapes.opt, shapes.max))


def _compute(report: LayerReport, precision: Precision) -> None:
    from farm.specs.precision import QUANTIZED

    macs = report.compute.macs
    total = "" if macs is None else f", {macs / 1e9:.3g} billion multiply-accumulates per run"
    show.line(f"{len(report.products)} convolutions and matrix products{total}")
    rows = [
        (type_, str(of.layers), show.share(of.share)) for type_, of in report.compute.types.items()
    ]
    show.table(("computes in", "layers", "share of the compute"), rows)
    show.line(_source(report))
    for product in report.products:
        if product.typed is not None:
            show.line(
                f"in {product.type}, and typed {product.typed}: {product.op_type} {product.name}"
            )
    if precision not in QUANTIZED:
        return
    wanted = precision.computes_in
    for product in report.products:
        if product.type != wanted and product.not_quantized:
            inputs = ", ".join(product.not_quantized)
            show.line(f"not in {wanted}: {product.op_type} {product.name} ({inputs} isn't)")


def _source(report: LayerReport) -> str:
    """``according to the plan: 10 of 10 found in it``."""
    compute, count = report.compute, len(report.products)
    said = f"according to the {show.SOURCES[compute.source]}"
    if compute.found is None:
        return said
    rest = "" if compute.found == count else "; the others according to the typed graph"
    return f"{said}: {compute.found} of {count} found in it{rest}"


def _memory(report: LayerReport, row: EngineView) -> None:
    rows = [
        (type_, f"{of.parameters:,}", show.size(of.bytes)) for type_, of in report.weights.items()
    ]
    if rows:
        show.table(("weights", "parameters", "size"), rows)
    memory, said = report.memory, []
    if memory is not None and memory.constants:
        sizes = ", ".join(f"{show.size(of)} {name}" for name, of in memory.constants.items())
        show.line(f"constants in the engine: {sizes}")
    if memory is not None and memory.context_bytes is not None:
        said.append(f"{show.size(memory.context_bytes)} for each execution context")
    if memory is not None and len(memory.context_bytes_by_profile) > 1:
        sizes = ", ".join(map(show.size, memory.context_bytes_by_profile))
        said.append(f"by profile {sizes}")
    if memory is not None and memory.streamable_weights_bytes:
        said.append(f"{show.size(memory.streamable_weights_bytes)} of weights are streamable")
    if said:
        show.line(f"GPU memory: {'; '.join(said)}")
    if row.peak_memory_bytes is not None:
        show.line(f"peak host memory of the build: {show.size(row.peak_memory_bytes)}")


def _timing_cache(used: TimingCacheUse) -> str:
    """``timing cache: revision 3 with 120 entries; 4 more were timed``."""
    if not used.taken:
        return "timing cache: none existed for its GPU and toolchain"
    known, misses = used.entries_before, used.misses
    entries = "" if known is None else f" with {counted(known, 'entry', 'entries')}"
    timed = "" if misses is None else f"; {misses or 'no'} more were timed"
    return f"timing cache: revision {used.revision}{entries}{timed}"


def _kinds(report: LayerReport) -> None:
    kinds = sorted(report.kinds.items(), key=lambda item: -item[1])
    if kinds and report.operators is not None:
        more = f", and {len(kinds) - _NAMED} more kinds" if len(kinds) > _NAMED else ""
        named = ", ".join(f"{count} {kind}" for kind, count in kinds[:_NAMED])
        show.line(f"{counted(report.operators, 'operator')} in the typed graph: {named}{more}")
    if report.fusions:
        fused = ", ".join(f"{count} {kind}" for kind, count in report.fusions.items())
        show.line(f"fused layers: {fused}")


def _tensors(tensors: Sequence[LayerTensor]) -> str:
    return ", ".join(f"{one.type or '?'} {_shape(one.shape)}" for one in tensors)
