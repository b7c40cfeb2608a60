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

Percentiles = Annotated[dict[Word, Number], Field(max_length=20)]


class Throughput(OpenRecord):
    batch: Count
    samples_per_s: Number | None
    latency_p50_ms: Number | None = None
    iterations: Count | None = None
    reason: Text | None = None


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
    autocast: Word | None = None
    throughput: Annotated[list[Throughput], Field(max_length=MOST_LISTED, fail_fast=True)] = []


class Range(OpenRecord):
    min: Number | None = None
    median: Number | None = None
    max: Number | None = None


class GpuWhileTimed(OpenRecord):
    """What NVML reported of the GPU while the engine was timed; null where it reports nothing."""

    name: Text | None = None
    driver: Text | None = None
    sm_clock_mhz: Range | None = None
    memory_clock_mhz: Range | None = None
    power_w: Range | None = None
    temperature_c: Range | None = None
    energy_j: Number | None = None
    mj_per_sample: Number | None = None
    slowed_by: Texts = []
    other_processes: Count | None = None


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
    """Latency and throughput of an engine beside PyTorch, on a CPU or a GPU."""

    batch: Count | None = None
    shapes: Annotated[dict[Name, Counts], Field(max_length=MOST_NAMES)] = {}
    eager: Timed | None = None
    eager_autocast: Timed | None = None
    compiled: Timed | None = None
    cuda_graph: Timed | None = None
    speed_up: Number | None = None
    speed_up_reason: Text | None = None
    speed_up_over_compiled: Number | None = None
    speed_up_over_compiled_with_cuda_graph: Number | None = None
    others_cpu_share: Number | None = None
    warnings: Texts = []
    memory: GpuMemory | None = None
    gpu: GpuWhileTimed | None = None
    settings: Settings | None = None
