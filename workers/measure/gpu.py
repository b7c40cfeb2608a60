"""Times an engine on a GPU next to PyTorch on the same GPU in the same run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch.export import ExportedProgram

from farm.errors import FarmError
from farm.reports.metrics import (
    GpuMemory,
    GpuWhileTimed,
    Metrics,
    Settings,
    Throughput,
    Timed,
)
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.stages import ReportProgress
from workers.backends.aotinductor.engine import AotiEngine
from workers.backends.ort import cuda
from workers.backends.trt import engine as trt_engine
from workers.clocks.cuda import Bind, Bound, Span, Streams, Tensors, time_queries
from workers.clocks.host import Pace
from workers.graphs.check import brief
from workers.graphs.compute import PRODUCTS
from workers.inputs.batch import Arrays, Batch
from workers.inputs.samples import Runnable
from workers.measure import nvml
from workers.measure.pytorch import PyTorchOnGpu, autocast_dtype

#: Like trtexec: 200 ms of warm-up, then 3 s and at least 10 queries.
PACE = Pace(duration_s=3.0, max_s=10.0)
#: At the other batch sizes, for throughput.
THROUGHPUT_PACE = replace(PACE, duration_s=1.0)


class GpuEngine(Runnable, Protocol):
    """An engine on the current GPU."""

    def bind(self, inputs: Tensors) -> Bound: ...

    def bind_graph(self, inputs: Tensors) -> Bound: ...


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine loaded onto the GPU that this process is pinned to."""

    engine: GpuEngine
    memory_bytes: int  #: taken by the engine
    other_processes: int  #: already on the GPU
    warnings: Sequence[str] = ()


def load(runtime: Runtime, path: Path, plugins: Sequence[Path] = ()) -> Loaded:
    """Load an engine. Must be the first use of CUDA in this process.

    Parameters:
        plugins: the plugin libraries it was built with.

    Raises:
        EngineBuildFailed: this GPU or this worker's runtime can't load it.
    """
    others = nvml.processes_on(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    torch.cuda.init()
    before = _used_bytes()
    warnings = []
    engine: GpuEngine
    if runtime is Runtime.ONNXRUNTIME:
        engine = cuda.OrtCudaEngine(path)
        slow = sorted(set(engine.on_cpu) & set(PRODUCTS))
        if slow:
            warnings.append(f"some of the graph's {', '.join(slow)} run on the CPU")
    elif runtime is Runtime.AOTINDUCTOR:
        engine = AotiEngine(path, "cuda")
    else:
        engine = trt_engine.TrtEngine(runtime, path, plugins)
    return Loaded(
        engine=engine,
        memory_bytes=_used_bytes() - before,
        other_processes=others,
        warnings=warnings,
    )


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The shapes and samples an engine is timed with, and its baseline."""

    program: ExportedProgram | None  #: the source, if PyTorch can run it
    precision: Precision
    batch: Batch
    samples: Arrays  #: run in batches


def metrics(loaded: Loaded, beside: Conditions, progress: ReportProgress) -> Metrics:
    """Latency with and without a CUDA graph; throughput at the profile's batch sizes.

    Latency includes transfers, the default of trtexec 10; the default of trtexec 11 is ``compute_ms`` of
    ``cuda_graph``.
    """
    # Let eager PyTorch use TF32, as the engines may.
    torch.set_float32_matmul_precision("high")
    engine, timer = loaded.engine, _Timer(beside)
    opt = beside.batch.opt
    with nvml.watching(_uuid(), loaded.other_processes) as seen:
        progress("time: the engine", None)
        span = timer.time(engine.bind, opt, PACE)
    progress("time: with a CUDA graph", None)
    graph = _tried(partial(timer.time, engine.bind_graph, opt, PACE), opt)
    throughput = timer.throughput(engine.bind, {opt: span}, progress)
    memory = GpuMemory(engine_bytes=loaded.memory_bytes, used_bytes=_used_bytes())
    gpu = _with_energy(seen.report(), span, opt)
    headline, peers = span.timed(opt), _peers(beside, timer, opt, progress)
    latency, compiled = _p50(headline), _p50(peers.get("compiled"))
    best = min(filter(None, (latency, _p50(graph))))
    return Metrics(
        batch=opt,
        shapes={name: list(array.shape) for name, array in timer.arrays(opt).items()},
        **headline.model_dump(),
        throughput=throughput,
        cuda_graph=graph,
        **peers,
        speed_up=_over(_p50(peers.get("eager")), latency),
        speed_up_over_compiled=_over(compiled, latency),
        speed_up_over_compiled_with_cuda_graph=_over(compiled, best),
        memory=memory,
        gpu=gpu,
        warnings=[*loaded.warnings, *span.warnings(), *_slowed(gpu)],
        settings=_settings(beside.precision),
    )


class _Timer:
    """Times models on the same samples and streams."""

    def __init__(self, beside: Conditions) -> None:
        self._beside = beside
        self._streams = Streams()

    def time(self, bind: Bind, batch: int, pace: Pace) -> Span:
        return time_queries(bind, self.arrays(batch), pace, self._streams)

    def throughput(
        self, bind: Bind, known: Mapping[int, Span], progress: ReportProgress
    ) -> list[Throughput]:
        """Throughput at the smallest, the opt and the largest batch."""
        entries = []
        sizes = self._beside.batch
        for batch in sorted({sizes.min, sizes.opt, sizes.max}):
            progress(f"time: batches of {batch}", None)
            if batch in known:
                entries.append(_entry(batch, known[batch].timed(batch)))
                continue
            timed = _tried(partial(self.time, bind, batch, THROUGHPUT_PACE), batch)
            entries.append(_entry(batch, timed))
        return entries

    def arrays(self, batch: int) -> Arrays:
        return self._beside.batch.repeated(self._beside.samples, batch)


def _entry(batch: int, timed: Timed) -> Throughput:
    if timed.latency_ms is None:
        return Throughput(batch=batch, samples_per_s=None, reason=timed.reason)
    return Throughput(
        batch=batch,
        samples_per_s=timed.samples_per_s,
        latency_p50_ms=timed.latency_ms["p50"],
        iterations=timed.iterations,
    )


def _peers(
    beside: Conditions, timer: _Timer, batch: int, progress: ReportProgress
) -> dict[str, Timed]:
    """PyTorch running the source as it is, with autocast to the engine's type, and compiled in that type."""
    names = ("eager", "eager_autocast", "compiled")
    if beside.program is None:
        reason = "the source isn't a program that PyTorch can run"
        return {name: Timed(reason=reason) for name in names}
    try:
        torch_model = PyTorchOnGpu(beside.program)
    except Exception as err:  # of any type: PyTorch's failure on the GPU isn't the engine's
        return {name: Timed(reason=_first_line(err)) for name in names}
    dtype = autocast_dtype(beside.precision)
    peers: dict[str, Timed] = {}
    for name, prepared, computes in (
        ("eager", torch_model.eager, None),
        ("eager_autocast", torch_model.eager, dtype),
        ("compiled", torch_model.compiled, dtype),
    ):
        if name == "eager_autocast" and dtype is None:
            continue
        progress(f"time: PyTorch, {name.replace('_', ' with ')}", None)
        timed = _tried(partial(_time_peer, timer, prepared, computes, batch), batch)
        autocast = computes and str(computes).removeprefix("torch.")
        peers[name] = timed.model_copy(update={"autocast": autocast})
    return peers


def _time_peer(
    timer: _Timer,
    prepared: Callable[[torch.dtype | None], Bind],
    dtype: torch.dtype | None,
    batch: int,
) -> Span:
    return timer.time(prepared(dtype), batch, PACE)


def _tried(time: Callable[[], Span], batch: int) -> Timed:
    """The figures of a graph, a batch or a peer, or why there are none. Not for the engine itself."""
    try:
        return time().timed(batch)
    except FarmError as err:
        return Timed(reason=brief(err))
    except Exception as err:  # from CUDA, a compiler, or lack of memory
        torch.cuda.empty_cache()
        return Timed(reason=_first_line(err))


def _p50(timed: Timed | None) -> float | None:
    return (timed.latency_ms or {}).get("p50") if timed else None


def _over(peer_ms: float | None, engine_ms: float | None) -> float | None:
    return round(peer_ms / engine_ms, 3) if peer_ms and engine_ms else None


def _slowed(gpu: GpuWhileTimed) -> list[str]:
    said = []
    if gpu.slowed_by:
        said.append(f"the GPU's clocks were throttled by {', '.join(gpu.slowed_by)}")
    if gpu.other_processes:
        said.append(f"{gpu.other_processes} other processes were on the GPU")
    return said


def _with_energy(gpu: GpuWhileTimed, span: Span, batch: int) -> GpuWhileTimed:
    energy = gpu.energy_j
    queries = len(span.queries)
    per_sample = None if energy is None else round(energy * 1e3 / (queries * batch), 3)
    return gpu.model_copy(update={"mj_per_sample": per_sample})


def _used_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def _uuid() -> str:
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"


def _settings(precision: Precision) -> Settings:
    """The settings that make figures comparable."""
    return Settings(
        device=torch.cuda.get_device_name(0),
        uuid=_uuid(),
        clock="CUDA events: transfer in + compute + transfer out, two queries in flight",
        transfers=True,
        spin_wait=False,
        cuda_graph=False,
        tf32=True,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        latency=PACE.view(),
        throughput=THROUGHPUT_PACE.view(),
        precision=str(precision),
    )


def _first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0][:300]}" if lines else type(err).__name__
