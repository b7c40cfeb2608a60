"""Times an engine on a GPU next to PyTorch on the same GPU in the same run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from farm.reports.metrics import GpuMemory, Metrics, Settings, Throughput, Timed
from farm.reports.speed_ups import PYTORCH, peers_precision, with_speed_ups
from farm.specs.precision import Precision
from farm.specs.runtime import Runtime
from farm.stages import ReportProgress
from workers.backends.aotinductor.engine import AotiEngine
from workers.backends.ort import cuda
from workers.backends.trt import engine as trt_engine
from workers.clocks.cuda import Bind, Bound, Tensors
from workers.clocks.host import Pace
from workers.graphs.compute import PRODUCTS
from workers.inputs.batch import Arrays, Batch
from workers.inputs.samples import Runnable
from workers.measure import nvml
from workers.measure.nvml import Tenants
from workers.measure.timer import PACE, THROUGHPUT_PACE, Figure, Timer, tried

_NO_PROGRAM = "the source isn't a program that PyTorch can run"


class GpuEngine(Runnable, Protocol):
    """An engine on the current GPU."""

    def bind(self, inputs: Tensors) -> Bound: ...

    def bind_graph(self, inputs: Tensors) -> Bound: ...


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An engine loaded onto the GPU that this process is pinned to."""

    engine: GpuEngine
    memory_bytes: int  #: taken by the engine
    tenants: Tenants  #: who is on the GPU
    warnings: Sequence[str] = ()


def load(runtime: Runtime, path: Path, plugins: Sequence[Path] = ()) -> Loaded:
    """Load an engine. Must be the first use of CUDA in this process.

    Parameters:
        plugins: the plugin libraries it was built with.

    Raises:
        EngineBuildFailed: this GPU or this worker's runtime can't load it.
    """
    pids = nvml.pids_on(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    before = len(set(pids) - {os.getpid()})
    torch.cuda.init()
    used = _used_bytes()
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
        memory_bytes=_used_bytes() - used,
        tenants=Tenants.now(_uuid(), before),
        warnings=warnings,
    )


@dataclass(frozen=True, kw_only=True)
class PeersAsked:
    """What PyTorch is timed with: what the engine was."""

    precision: Precision
    batch: int
    arrays: Arrays  #: one batch
    pace: Pace
    tenants: Tenants
    sm_mhz: float | None = None  #: the GPU's median clock while the engine was timed


@dataclass(frozen=True, kw_only=True)
class PeersFound:
    """PyTorch's figures."""

    figures: Mapping[str, Timed]  #: or reasons, by the names in ``PYTORCH``
    age_s: int | None = None  #: if they were taken beside another engine


class Peers(Protocol):
    """Times PyTorch on this GPU, outside this process."""

    def __call__(self, asked: PeersAsked, progress: ReportProgress) -> PeersFound:
        """Raises nothing of PyTorch's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The shapes and samples an engine is timed with, and its baseline."""

    peers: Peers | None  #: of the source, if PyTorch can run it
    precision: Precision
    tf32: bool  #: whether fp32 products may use it, the engine's and PyTorch's
    batch: Batch
    samples: Arrays  #: run in batches

    def arrays(self, batch: int) -> Arrays:
        return self.batch.repeated(self.samples, batch)


def metrics(loaded: Loaded, beside: Conditions, progress: ReportProgress) -> Metrics:
    """Latency with and without a CUDA graph; throughput at the profile's batch sizes; and PyTorch's.

    Latency includes transfers, the default of trtexec 10; the default of trtexec 11 is ``compute_ms`` of
    ``cuda_graph``.
    """
    engine, timer = loaded.engine, Timer(loaded.tenants)
    opt, precision = beside.batch.opt, str(beside.precision)
    arrays = beside.arrays(opt)
    progress("time: the engine", None)
    figure = timer.figure(engine.bind, arrays, opt, PACE)
    progress("time: with a CUDA graph", None)
    graph = tried(
        lambda: timer.figure(engine.bind_graph, arrays, opt, PACE).timed(precision),
        precision=precision,
    )
    throughput = _throughput(timer, engine.bind, beside, figure, progress)
    memory = GpuMemory(engine_bytes=loaded.memory_bytes, used_bytes=_used_bytes())
    headline = figure.timed(precision)
    peers = _peers(loaded, beside, headline, progress)
    found = Metrics(
        batch=opt,
        shapes={name: list(array.shape) for name, array in arrays.items()},
        **_warned(headline, loaded.warnings).model_dump(),
        throughput=throughput,
        cuda_graph=_warned(graph, loaded.warnings),
        **peers.figures,
        peers_age_s=peers.age_s,
        peers_precision=str(peers_precision(beside.precision)),
        memory=memory,
        settings=_settings(beside),
    )
    return with_speed_ups(found)


def _warned(timed: Timed, warnings: Sequence[str]) -> Timed:
    """The figures, if there are any, with warnings that concern the engine itself."""
    if timed.p50_ms is None:
        return timed
    return timed.model_copy(update={"warnings": [*warnings, *timed.warnings]})


def _throughput(
    timer: Timer, bind: Bind, beside: Conditions, opt: Figure, progress: ReportProgress
) -> list[Throughput]:
    """Throughput at the smallest, the opt and the largest batch."""
    entries = []
    sizes, precision = beside.batch, str(beside.precision)

    def timed(batch: int) -> Timed:
        if batch == opt.batch:
            return opt.timed(precision)
        arrays = beside.arrays(batch)
        return timer.figure(bind, arrays, batch, THROUGHPUT_PACE).timed(precision)

    for batch in sorted({sizes.min, sizes.opt, sizes.max}):
        progress(f"time: batches of {batch}", None)
        entries.append(_entry(batch, tried(partial(timed, batch))))
    return entries


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
    loaded: Loaded, beside: Conditions, engine: Timed, progress: ReportProgress
) -> PeersFound:
    """PyTorch's figures, taken by another process while this one does nothing on the GPU."""
    if beside.peers is None:
        return PeersFound(figures={name: Timed(reason=_NO_PROGRAM) for name in PYTORCH})
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    torch.cuda.empty_cache()
    asked = PeersAsked(
        precision=peers_precision(beside.precision),
        batch=beside.batch.opt,
        arrays=beside.arrays(beside.batch.opt),
        pace=PACE,
        tenants=loaded.tenants,
        sm_mhz=engine.sm_mhz,
    )
    return beside.peers(asked, progress)


def _used_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def _uuid() -> str:
    return f"GPU-{torch.cuda.get_device_properties(0).uuid}"


def _settings(beside: Conditions) -> Settings:
    """The settings that make figures comparable."""
    return Settings(
        device=torch.cuda.get_device_name(0),
        uuid=_uuid(),
        clock="CUDA events: transfer in + compute + transfer out, two queries in flight",
        transfers=True,
        spin_wait=False,
        cuda_graph=False,
        tf32=beside.tf32,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        latency=PACE.view(),
        throughput=THROUGHPUT_PACE.view(),
        precision=str(beside.precision),
    )
