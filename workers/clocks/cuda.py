"""Measures GPU latency as trtexec does: CUDA events around transfer in, compute, transfer out.

Two queries are in flight, with one stream for transfers in, one for compute and one for transfers out, so
that transfers overlap with compute. Latency is the sum of a query's three parts; throughput is the queries
over the time from the first transfer in to the last one out.
Source: TensorRT's samples/common/sampleInference.cpp.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from farm.reports.metrics import ENQUEUE_SHARE, GpuWhileTimed, Timed
from workers.clocks.host import PERCENTILES, Pace, percentile

#: trtexec's threshold for its warning.
COMPUTE_VARIATION = 0.025
FEW_QUERIES = 100

_IN_FLIGHT = 2

Tensors = Mapping[str, torch.Tensor]


class Bound(Protocol):
    """An inference whose inputs are on the GPU."""

    def enqueue(self) -> Tensors:
        """Enqueue one inference on the current stream; return its outputs, ready when the stream is."""
        ...


#: Makes an inference from GPU tensors; it will run on the stream that is current now.
Bind = Callable[[Tensors], Bound]


@dataclass(frozen=True, kw_only=True)
class Query:
    """The parts of one inference, in milliseconds."""

    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    enqueue_ms: float  #: host time around the call

    @property
    def latency_ms(self) -> float:
        return self.h2d_ms + self.compute_ms + self.d2h_ms


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive queries, and their total time."""

    queries: Sequence[Query]
    seconds: float

    @property
    def is_host_bound(self) -> bool:
        """Whether the host takes so long to enqueue a query that the GPU waits for it."""
        return self._enqueue_ms > ENQUEUE_SHARE * self._compute_ms

    def timed(self, batch: int) -> Timed:
        """Percentiles of each part; queries and samples per second."""
        rate = len(self.queries) / self.seconds
        return Timed(
            latency_ms=_spread([q.latency_ms for q in self.queries]),
            h2d_ms=_spread([q.h2d_ms for q in self.queries]),
            compute_ms=_spread([q.compute_ms for q in self.queries]),
            d2h_ms=_spread([q.d2h_ms for q in self.queries]),
            enqueue_ms=_spread([q.enqueue_ms for q in self.queries]),
            iterations=len(self.queries),
            queries_per_s=round(rate, 2),
            samples_per_s=round(rate * batch, 2),
            host_bound=self.is_host_bound,
        )

    def warnings(self, gpu: GpuWhileTimed) -> list[str]:
        """Reasons why the figures may be too low or unreliable.

        Parameters:
            gpu: what was seen of the GPU meanwhile; nothing is advised that contradicts it.
        """
        said = []
        if self.is_host_bound:
            said.append(
                f"the host takes {self._enqueue_ms:.3f} ms to enqueue a compute time of "
                f"{self._compute_ms:.3f} ms, so the GPU waits for the host"
            )
        compute = [query.compute_ms for query in self.queries]
        variation = pstdev(compute) / fmean(compute)
        if variation > COMPUTE_VARIATION:
            why = _HOST_VARIES if self.is_host_bound else _why_it_varies(gpu)
            said.append(f"the compute time varies by {variation:.1%}{why}")
        if len(self.queries) < FEW_QUERIES:
            said.append(
                f"only {len(self.queries)} queries were timed: high percentiles mean little"
            )
        return said

    @property
    def _enqueue_ms(self) -> float:
        return median(query.enqueue_ms for query in self.queries)

    @property
    def _compute_ms(self) -> float:
        return median(query.compute_ms for query in self.queries)


_HOST_VARIES = ": it includes waiting for the host"


def _why_it_varies(gpu: GpuWhileTimed) -> str:
    """What the telemetry says of it. The clocks' lock is advised only where they moved freely."""
    clock = gpu.sm_clock_mhz
    if clock is None or clock.min is None or clock.max is None:
        return "; whether the SM clock moved is unknown, since NVML reported none"
    if clock.min == clock.max:
        return f" though the SM clock was steady at {clock.max:g} MHz"
    moved = f" while the SM clock moved from {clock.min:g} to {clock.max:g} MHz"
    if gpu.slowed_by:
        return f"{moved}, limited by {', '.join(gpu.slowed_by)}"
    return f"{moved}: lock the GPU's clocks (nvidia-smi --lock-gpu-clocks) for steadier figures"


class Streams:
    """One stream per part of a query."""

    def __init__(self) -> None:
        self.h2d = torch.cuda.Stream()
        self.compute = torch.cuda.Stream()
        self.d2h = torch.cuda.Stream()


def time_queries(
    bind: Bind,
    arrays: Mapping[str, NDArray[np.generic]],
    pace: Pace,
    streams: Streams,
    *,
    during: Callable[[], AbstractContextManager[object]] = nullcontext,
    channels_last: bool = False,
) -> Span:
    """Time inferences of these inputs on the current GPU.

    Parameters:
        during: entered while queries are timed, and not for the warm-up.
        channels_last: have the images, which are the inputs with four axes, laid out as NHWC.

    Raises:
        RuntimeError: from CUDA, for example when GPU memory runs out.
    """
    sent = {name: _pinned(array, channels_last=channels_last) for name, array in arrays.items()}
    slots = [_Slot(bind, sent, streams) for _ in range(_IN_FLIGHT)]
    _repeat(slots, seconds=pace.warmup_s, least=_IN_FLIGHT, longest_s=pace.max_s)
    first = torch.cuda.Event(enable_timing=True)
    with during():
        torch.cuda.synchronize()
        first.record(streams.h2d)
        queries, last = _repeat(
            slots, seconds=pace.duration_s, least=pace.min_iterations, longest_s=pace.max_s
        )
    return Span(queries=queries, seconds=first.elapsed_time(last) / 1e3)


def captured(bind: Bind) -> Bind:
    """The same inference as a CUDA graph, for runtimes whose work can be captured."""
    return lambda inputs: _Captured(bind(inputs))


class _Captured:
    def __init__(self, bound: Bound) -> None:
        stream = torch.cuda.current_stream()
        bound.enqueue()  # don't capture the setup of a first run
        stream.synchronize()
        self._bound = bound
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            self._outputs = bound.enqueue()

    def enqueue(self) -> Tensors:
        self._graph.replay()
        return self._outputs


class _Slot:
    """The buffers and events of one query in flight."""

    def __init__(self, bind: Bind, sent: Tensors, streams: Streams) -> None:
        self.busy = False
        self._streams = streams
        self._sent = sent
        self._inputs = {name: tensor.cuda() for name, tensor in sent.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(streams.compute):
            self._bound = bind(self._inputs)
            self._outputs = self._bound.enqueue()
            streams.compute.synchronize()
        self._received = {
            # In the layout that the model gives it, so that the transfer is a plain copy.
            name: torch.empty_like(tensor, device="cpu", pin_memory=True)
            for name, tensor in self._outputs.items()
        }
        self._events = [torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(6)]
        self._enqueue_ms = 0.0

    def start(self) -> None:
        sent, arrived, began, computed, leaving, received = self._events
        self.busy = True
        with torch.cuda.stream(self._streams.h2d):
            sent.record()
            for name, tensor in self._sent.items():
                self._inputs[name].copy_(tensor, non_blocking=True)
            arrived.record()
        with torch.cuda.stream(self._streams.compute):
            self._streams.compute.wait_event(arrived)
            began.record()
            start = time.perf_counter()
            self._outputs = self._bound.enqueue()
            self._enqueue_ms = (time.perf_counter() - start) * 1e3
            computed.record()
        with torch.cuda.stream(self._streams.d2h):
            self._streams.d2h.wait_event(computed)
            leaving.record()
            for name, tensor in self._outputs.items():
                self._received[name].copy_(tensor, non_blocking=True)
            received.record()

    def finish(self) -> Query:
        sent, arrived, began, computed, leaving, received = self._events
        received.synchronize()
        self.busy = False
        return Query(
            h2d_ms=sent.elapsed_time(arrived),
            compute_ms=began.elapsed_time(computed),
            d2h_ms=leaving.elapsed_time(received),
            enqueue_ms=self._enqueue_ms,
        )

    @property
    def received(self) -> torch.cuda.Event:
        """The event when its outputs were on the host."""
        return self._events[-1]


def _repeat(
    slots: Sequence[_Slot], *, seconds: float, least: int, longest_s: float
) -> tuple[list[Query], torch.cuda.Event]:
    """Run queries for a time, and at least a given number; also return the last one's end event."""
    queries: list[Query] = []
    start = time.perf_counter()
    started = 0
    while True:
        spent = time.perf_counter() - start
        if spent >= longest_s or (spent >= seconds and started >= least):
            break
        slot = slots[started % len(slots)]
        if slot.busy:
            queries.append(slot.finish())
        slot.start()
        started += 1
    last = slots[(started - 1) % len(slots)]
    for number in range(started, started + len(slots)):  # in start order
        if slots[number % len(slots)].busy:
            queries.append(slots[number % len(slots)].finish())
    return queries, last.received


def _pinned(array: NDArray[np.generic], *, channels_last: bool) -> torch.Tensor:
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if channels_last and tensor.dim() == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor.pin_memory()


def _spread(values: Sequence[float]) -> dict[str, float]:
    facts = {f"p{p}": round(percentile(values, p), 4) for p in PERCENTILES}
    return facts | {"mean": round(fmean(values), 4), "min": round(min(values), 4)}
