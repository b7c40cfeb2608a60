"""An engine's speed, compared with its baseline's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.reports.records import (
    MOST_LISTED,
    MOST_NAMES,
    Count,
    Counts,
    Name,
    Number,
    OpenRecord,
    Text,
    Texts,
    Word,
)

#: If other processes use more than this share of all cores, a ratio of latencies means little.
MAX_OTHERS_SHARE = 0.2
#: How much the SM clock may differ between figures that are compared, relatively: trtexec's limit for a
#: steady figure.
MAX_CLOCK_DIFFERENCE = 0.025
#: If the host takes more than this share of the compute time to enqueue it, the GPU waits for the host and
#: the figures are the host's. trtexec's threshold.
ENQUEUE_SHARE = 0.8

Percentiles = Annotated[dict[Word, Number], Field(max_length=20)]


class Throughput(OpenRecord):
    batch: Count
    samples_per_s: Number | None
    latency_p50_ms: Number | None = None
    iterations: Count | None = None
    reason: Text | None = None


class Range(OpenRecord):
    min: Number | None = None
    median: Number | None = None
    max: Number | None = None


class GpuWhileTimed(OpenRecord):
    """What NVML reported of the GPU while a model was timed; null where it reports nothing."""

    name: Text | None = None
    driver: Text | None = None
    sm_clock_mhz: Range | None = None
    memory_clock_mhz: Range | None = None
    power_w: Range | None = None
    temperature_c: Range | None = None
    energy_j: Number | None = None
    mj_per_sample: Number | None = None
    slowed_by: Texts = []
    other_processes: Count | None = None  #: the most at once, before and while it was timed


class Timed(OpenRecord):
    """The figures of one model, or the reason why there are none."""

    latency_ms: Percentiles | None = None
    h2d_ms: Percentiles | None = None
    compute_ms: Percentiles | None = None
    d2h_ms: Percentiles | None = None
    enqueue_ms: Percentiles | None = None
    iterations: Count | None = None
    samples_per_s: Number | None = None
    queries_per_s: Number | None = None
    reason: Text | None = None
    precision: Word | None = None  #: what it computes in; ``mixed`` if the source has several types
    channels_last: bool | None = None  #: whether it took its images as NHWC
    host_bound: bool | None = None  #: whether the GPU waited for the host; see ``is_host_bound``
    autocast: Word | None = None  #: of earlier releases
    warnings: Texts = []
    gpu: GpuWhileTimed | None = None
    throughput: Annotated[list[Throughput], Field(max_length=MOST_LISTED, fail_fast=True)] = []

    @property
    def p50_ms(self) -> float | None:
        """The median latency; None if it wasn't measured."""
        return (self.latency_ms or {}).get("p50") or None

    @property
    def sm_mhz(self) -> float | None:
        """The GPU's median clock meanwhile; None if unknown."""
        clock = self.gpu.sm_clock_mhz if self.gpu else None
        return clock.median if clock else None

    @property
    def is_host_bound(self) -> bool:
        """Whether the GPU waited for the host, so that the figures say more about the host."""
        if self.host_bound is not None:
            return self.host_bound
        # Earlier releases recorded the times alone.
        enqueue, compute = ((part or {}).get("p50") for part in (self.enqueue_ms, self.compute_ms))
        return bool(enqueue and compute and enqueue > ENQUEUE_SHARE * compute)


class GpuMemory(OpenRecord):
    """In bytes. ``engine_bytes`` is a difference: other processes may have freed some meanwhile."""

    engine_bytes: int | None = None
    used_bytes: int | None = None


class PaceView(OpenRecord):
    """How long a model is run before and while it's timed."""

    warmup_s: Number | None = None
    duration_s: Number | None = None
    min_iterations: Count | None = None
    max_s: Number | None = None
    slice_s: Number | None = None


class Settings(OpenRecord):
    """What must be equal for two measurements to be comparable, and what it was timed with."""

    device: Text | None = None
    uuid: Text | None = None
    cpu: Text | None = None
    threads: Count | None = None
    precision: Word | None = None
    torch: Word | None = None
    cuda: Word | None = None
    glibc_tunables: Text | None = None
    clock: Text | None = None
    transfers: bool | None = None
    spin_wait: bool | None = None
    cuda_graph: bool | None = None
    tf32: bool | None = None
    latency: PaceView | None = None
    throughput: PaceView | None = None


class Metrics(Timed):
    """Latency and throughput of an engine beside PyTorch, on a CPU or a GPU.

    The engine's own figures are those without a CUDA graph.
    """

    batch: Count | None = None
    shapes: Annotated[dict[Name, Counts], Field(max_length=MOST_NAMES)] = {}
    cuda_graph: Timed | None = None
    eager: Timed | None = None  #: the source as it is
    eager_typed: Timed | None = None  #: in ``peers_precision``, if the source isn't in it
    eager_cuda_graph: Timed | None = None  #: in ``peers_precision``
    eager_autocast: Timed | None = None  #: of earlier releases
    compiled: Timed | None = None  #: frozen, in ``peers_precision``; before, by autocast
    compiled_cuda_graph: Timed | None = None
    peers_precision: Word | None = None  #: what PyTorch computes in beside this engine
    speed_up: Number | None = None  #: over eager, neither with a CUDA graph
    speed_up_reason: Text | None = None
    speed_up_over_compiled: Number | None = None  #: neither with a CUDA graph
    speed_up_over_compiled_reason: Text | None = None
    speed_up_over_compiled_with_cuda_graph: Number | None = None  #: both with one
    speed_up_over_compiled_with_cuda_graph_reason: Text | None = None
    speed_up_over_best: Number | None = None  #: of the engine at its best over PyTorch at its best
    speed_up_over_best_reason: Text | None = None
    #: How long before the engine PyTorch was timed, where that was beside another engine of the same
    #: source and precision, on the same card.
    peers_age_s: Count | None = None
    best_of_pytorch: Word | None = None  #: which of PyTorch's figures is its best
    others_cpu_share: Number | None = None
    memory: GpuMemory | None = None
    settings: Settings | None = None

    @property
    def compares_like(self) -> bool:
        """Whether the speed-ups have two sides that are alike: not a GPU engine's of earlier releases."""
        return self.gpu is None or self.peers_precision is not None

    @property
    def at_its_best(self) -> Timed:
        """The engine's figures with a CUDA graph, if that was measured and is faster; else without."""
        graph, plain = self.cuda_graph, self.p50_ms
        if graph is None or graph.p50_ms is None or (plain is not None and plain <= graph.p50_ms):
            return self
        return graph
