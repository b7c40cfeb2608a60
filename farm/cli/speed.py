"""``farm speed``: an engine's latency and throughput."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import show
from farm.cli.options import Json, Url, connect, example

if TYPE_CHECKING:
    from farm.reports.metrics import Metrics, Timed

_PARTS = ("h2d_ms", "compute_ms", "d2h_ms", "enqueue_ms")
_PERCENTILES = ("p50", "p90", "p95", "p99")


def register(app: typer.Typer) -> None:
    text = "farm speed 06gm2vw9k3xq4t7n"
    app.command("speed", rich_help_panel="Engines", epilog=example(text))(speed)


def speed(
    engine: Annotated[
        str, typer.Argument(metavar="ENGINE", help="An engine's id: farm engines MODEL lists them.")
    ],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show an engine's speed next to PyTorch on the same machine, and how it was measured.

    Times are in milliseconds. On a GPU they match trtexec's: latency is host-to-device transfer,
    compute and device-to-host transfer (p50 of each); enqueue is the host's enqueue time.
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
    for name, facts in timed.items():
        if facts.reason:
            show.line(f"{name}: not measured: {facts.reason}")
    _throughput(metrics)
    for said in metrics.warnings:
        show.line(f"warning: {said}")
    if metrics.speed_up_reason:
        show.line(f"no speed-up over PyTorch: {metrics.speed_up_reason}")


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
    for said, timed in (
        ("engine, CUDA graph", metrics.cuda_graph),
        ("PyTorch", metrics.eager),
        ("PyTorch", metrics.eager_autocast),
        ("PyTorch, torch.compile", metrics.compiled),
    ):
        if timed:
            yield f"{said}, {timed.autocast}" if timed.autocast else said, timed


def _row(name: str, timed: Timed) -> tuple[str, ...]:
    latency = timed.latency_ms or {}
    return (
        name,
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
