"""``farm speed``: an engine's latency and throughput."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from farm.cli import show
from farm.cli.options import Json, Url, connect, example

#: The field of the metrics → what people read.
_TIMED = {
    "cuda_graph": "engine, CUDA graph",
    "eager": "PyTorch",
    "eager_autocast": "PyTorch",
    "compiled": "PyTorch, torch.compile",
}
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
    show.line(f"batches of {metrics['batch']} on {_device(metrics)}")
    timed = dict(_timed(metrics))
    rows = [_row(name, facts) for name, facts in timed.items() if "latency_ms" in facts]
    headers = ("", *_PERCENTILES, *(part.removesuffix("_ms") for part in _PARTS), "samples/s")
    show.table(headers, rows, keep=headers)
    for name, facts in timed.items():
        if "reason" in facts:
            show.line(f"{name}: not measured: {facts['reason']}")
    _throughput(metrics)
    for said in metrics.get("warnings", ()):
        show.line(f"warning: {said}")
    if metrics.get("speed_up_reason"):
        show.line(f"no speed-up over PyTorch: {metrics['speed_up_reason']}")


def _device(metrics: Mapping[str, Any]) -> str:
    gpu = metrics.get("gpu")
    if gpu is None:
        settings = metrics["settings"]
        return f"{settings.get('cpu', 'a CPU')}, {settings.get('threads', '?')} threads"
    said = [str(metrics["settings"]["device"])]
    for name, unit in (("sm_clock_mhz", "MHz"), ("power_w", "W"), ("temperature_c", "°C")):
        if gpu.get(name):
            said.append(f"{gpu[name]['median']:.0f} {unit}")
    if gpu.get("mj_per_sample") is not None:
        said.append(f"{gpu['mj_per_sample']:.3g} mJ per sample")
    said.append(f"{show.size(metrics['memory']['engine_bytes'])} of GPU memory")
    return ", ".join(said)


def _timed(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "engine", metrics
    for name, said in _TIMED.items():
        facts = metrics.get(name)
        if facts:
            autocast = facts.get("autocast")
            yield f"{said}, {autocast}" if autocast else said, facts


def _row(name: str, facts: Mapping[str, Any]) -> tuple[str, ...]:
    latency = facts["latency_ms"]
    return (
        name,
        *(_ms(latency.get(p)) for p in _PERCENTILES),
        *(_ms((facts.get(part) or {}).get("p50")) for part in _PARTS),
        show.NONE if facts.get("samples_per_s") is None else f"{facts['samples_per_s']:.0f}",
    )


def _ms(value: float | None) -> str:
    return show.NONE if value is None else f"{value:.3f}"


def _throughput(metrics: Mapping[str, Any]) -> None:
    rows = [
        (
            str(entry["batch"]),
            show.NONE if entry["samples_per_s"] is None else f"{entry['samples_per_s']:.0f}",
            _ms(entry.get("latency_p50_ms")),
            entry.get("reason", ""),
        )
        for entry in metrics.get("throughput", ())
    ]
    if rows:
        show.line()
        show.table(("batch", "samples/s", "p50", ""), rows, keep=("batch", "samples/s", "p50"))
