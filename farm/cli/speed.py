"""``farm speed``: an engine's latency and throughput."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import show
from farm.cli.options import Json, Url, connect, example
from farm.specs import durations

if TYPE_CHECKING:
    from farm.reports.metrics import Metrics, Timed

_PARTS = ("h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms")
_PERCENTILES = ("p50", "p90", "p95", "p99")
_PYTORCH, _COMPILED = "PyTorch", "PyTorch, torch.compile"
#: The ratios → over what.
_SPEED_UPS = {
    "speed_up": "over PyTorch eager{beside}",
    "speed_up_over_compiled": "over PyTorch compiled{beside}, both without a CUDA graph",
    "speed_up_over_compiled_with_cuda_graph": (
        "over PyTorch compiled{beside}, both with a CUDA graph"
    ),
    "speed_up_over_best": "over the best of PyTorch{beside}, the engine at its best",
}


def register(app: typer.Typer) -> None:
    text = "farm speed 06gm2vw9k3xq4t7n"
    app.command("speed", rich_help_panel="Engines", epilog=example(text))(speed)


def speed(
    engine: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE",
            help="An engine's id, or its first characters: farm engines MODEL lists them.",
        ),
    ],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show an engine's speed next to PyTorch on the same machine, and how it was measured.

    Times are in milliseconds. On a GPU they match trtexec's: latency is host-to-device transfer,
    compute and device-to-host transfer (p50 of each); enqueue is the host's enqueue time. PyTorch
    runs the source as it is, and in the engine's precision: eager, and compiled with frozen weights,
    each without and with a CUDA graph. Speed-ups compare like with like, or say why there is none.
    """
    row = connect(url).engine(engine)
    metrics = row.metrics
    if as_json:
        show.document({"metrics": metrics, "metrics_reason": row.metrics_reason})
        return
    show.line(
        f"{row.model} v{row.version} {show.precision(row.precision, row.prune)} for {row.runtime}:{row.gpu}"
    )
    if metrics is None:
        show.line(f"not measured: {row.metrics_reason}")
        return
    show.line(f"batches of {metrics.batch} on {_device(metrics)}")
    timed = dict(_timed(metrics))
    rows = [_row(name, facts) for name, facts in timed.items() if facts.latency_ms]
    headers = ("", *_PERCENTILES, *(part.removesuffix("_ms") for part in _PARTS), "samples/s")
    show.table(headers, rows, keep=headers)
    if any(facts.is_host_bound for facts in timed.values()):
        show.line("* host-bound: the GPU waits for the host, so it isn't compared")
    for name, facts in timed.items():
        if facts.reason:
            show.line(f"{name}: not measured: {facts.reason}")
    if metrics.peers_age_s is not None:
        before = durations.told(metrics.peers_age_s)
        show.line(f"PyTorch was timed {before} before, beside another engine")
    _throughput(metrics)
    _speed_ups(metrics)
    for name, facts in timed.items():
        of = "" if facts is metrics else f" ({name})"
        for said in facts.warnings:
            show.line(f"warning{of}: {said}")


def _device(metrics: Metrics) -> str:
    gpu, settings = metrics.gpu, metrics.settings
    if gpu is None or settings is None:
        cpu, threads = (settings.cpu, settings.threads) if settings else (None, None)
        return f"{cpu or 'a CPU'}, {threads or '?'} threads"
    said = [settings.device or "a GPU"]
    for measured, unit in (
        (gpu.sm_clock_mhz, "MHz"),
        (gpu.power_w, "W"),
        (gpu.temperature_c, "°C"),
    ):
        if measured and measured.median is not None:
            said.append(f"{measured.median:.0f} {unit}")
    if gpu.mj_per_sample is not None:
        said.append(f"{gpu.mj_per_sample:.3g} mJ per sample")
    if metrics.memory and metrics.memory.engine_bytes is not None:
        said.append(f"{show.size(metrics.memory.engine_bytes)} of GPU memory")
    return ", ".join(said)


def _timed(metrics: Metrics) -> Iterator[tuple[str, Timed]]:
    yield "engine", metrics
    for said, graph, timed in (
        ("engine", True, metrics.cuda_graph),
        (_PYTORCH, False, metrics.eager),
        (_PYTORCH, False, metrics.eager_typed),
        (_PYTORCH, True, metrics.eager_cuda_graph),
        (_PYTORCH, False, metrics.eager_autocast),
        (_COMPILED, False, metrics.compiled),
        (_COMPILED, True, metrics.compiled_cuda_graph),
    ):
        if timed:
            yield ", ".join(filter(None, _called(said, timed, graph=graph))), timed


def _called(said: str, timed: Timed, *, graph: bool) -> Iterator[str | None]:
    """``PyTorch, torch.compile``, ``fp16``, ``NHWC``, ``CUDA graph``."""
    yield said
    if said != "engine":
        yield timed.precision or timed.autocast
    yield "NHWC" if timed.channels_last else None
    yield "CUDA graph" if graph else None


def _speed_ups(metrics: Metrics) -> None:
    if not metrics.compares_like:
        show.line("no speed-ups: an earlier release measured it, and compared unlike figures")
        return
    beside = f" in {metrics.peers_precision}" if metrics.peers_precision else ""
    for name, said in _SPEED_UPS.items():
        ratio, reason = getattr(metrics, name), getattr(metrics, f"{name}_reason")
        if ratio is not None:
            show.line(f"{ratio:.2f}× {said.format(beside=beside)}{_best(metrics, name)}")
        elif reason:
            show.line(f"no speed-up {said.format(beside=beside)}: {reason}")


def _best(metrics: Metrics, name: str) -> str:
    """Which of PyTorch's figures is its best, where that is compared."""
    # Late, as in all commands: the records' library takes as long to load as the rest of a command.
    from farm.reports.speed_ups import PYTORCH

    best = metrics.best_of_pytorch if name == "speed_up_over_best" else None
    return f" ({PYTORCH[best]})" if best in PYTORCH else ""


def _row(name: str, timed: Timed) -> tuple[str, ...]:
    latency = timed.latency_ms or {}
    return (
        f"{name} *" if timed.is_host_bound else name,
        *(_ms(latency.get(percentile)) for percentile in _PERCENTILES),
        *(_ms((getattr(timed, part) or {}).get("p50")) for part in _PARTS),
        show.NONE if timed.samples_per_s is None else f"{timed.samples_per_s:.0f}",
    )


def _ms(value: float | None) -> str:
    return show.NONE if value is None else f"{value:.3f}"


def _throughput(metrics: Metrics) -> None:
    rows = [
        (
            str(entry.batch),
            show.NONE if entry.samples_per_s is None else f"{entry.samples_per_s:.0f}",
            _ms(entry.latency_p50_ms),
            entry.reason or "",
        )
        for entry in metrics.throughput
    ]
    if rows:
        show.line()
        show.table(("batch", "samples/s", "p50", ""), rows, keep=("batch", "samples/s", "p50"))
