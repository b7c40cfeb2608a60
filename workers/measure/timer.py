"""Times models on the GPU: one clock, one pace and one watch over the GPU, for engines and for PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from farm.errors import FarmError
from farm.reports.metrics import GpuWhileTimed, Timed
from workers.clocks.cuda import Bind, Span, Streams, time_queries
from workers.clocks.host import Pace
from workers.graphs.check import brief
from workers.inputs.batch import Arrays
from workers.measure import nvml
from workers.measure.nvml import Tenants

#: Like trtexec: 200 ms of warm-up, then 3 s and at least 10 queries.
PACE = Pace(duration_s=3.0, max_s=10.0)
#: At the other batch sizes, for throughput.
THROUGHPUT_PACE = replace(PACE, duration_s=1.0)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What timing one model gave."""

    span: Span
    gpu: GpuWhileTimed
    batch: int

    def timed(self, precision: str) -> Timed:
        """The figures, with what to think of them."""
        return self.span.timed(self.batch).model_copy(
            update={
                "precision": precision,
                "gpu": self.gpu,
                "warnings": [*self.span.warnings(self.gpu), *_disturbed(self.gpu)],
            }
        )


class Timer:
    """Times models on the same streams of the current GPU.

    Parameters:
        tenants: who is on the GPU.
    """

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._streams = Streams()

    def figure(
        self, bind: Bind, arrays: Arrays, batch: int, pace: Pace, *, channels_last: bool = False
    ) -> Figure:
        """Time a model on these arrays, which are a batch of so many samples.

        Raises:
            RuntimeError: from CUDA, for example when GPU memory runs out.
        """
        seen = nvml.Telemetry(others=self._tenants.others)

        @contextmanager
        def during() -> Iterator[None]:
            nonlocal seen
            with nvml.watching(self._tenants) as seen:
                yield

        span = time_queries(
            bind, arrays, pace, self._streams, during=during, channels_last=channels_last
        )
        return Figure(span=span, gpu=_with_energy(seen.report(), span, batch), batch=batch)


def tried(timed: Callable[[], Timed], **more: object) -> Timed:
    """The figures of a graph, a batch or a peer, or why there are none. Not for the engine itself.

    Parameters:
        more: what is recorded either way.
    """
    try:
        found = timed()
    except FarmError as err:
        found = Timed(reason=brief(err))
    except Exception as err:  # from CUDA, a compiler, or lack of memory
        torch.cuda.empty_cache()
        found = Timed(reason=first_line(err))
    return found.model_copy(update=more)


def first_line(err: Exception) -> str:
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__}: {lines[0][:300]}" if lines else type(err).__name__


def _disturbed(gpu: GpuWhileTimed) -> list[str]:
    said = []
    if gpu.slowed_by:
        said.append(f"the GPU's clocks were throttled by {', '.join(gpu.slowed_by)}")
    if gpu.other_processes:
        said.append(f"{gpu.other_processes} other processes were on the GPU")
    return said


def _with_energy(gpu: GpuWhileTimed, span: Span, batch: int) -> GpuWhileTimed:
    energy = gpu.energy_j
    samples = len(span.queries) * batch
    per_sample = None if energy is None else round(energy * 1e3 / samples, 3)
    return gpu.model_copy(update={"mj_per_sample": per_sample})
