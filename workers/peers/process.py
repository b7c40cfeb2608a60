"""Times PyTorch on the GPU: ``python -m workers.peers.process REQUEST``.

Writes each figure to the answer as soon as it has it. What it prints belongs to the job's log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from farm.processes import die_with_parent
from farm.reports.metrics import Timed
from farm.reports.speed_ups import PYTORCH
from farm.specs.precision import Precision
from workers.backends.aotinductor.build import choose_kernels, folder_for_compilers
from workers.clocks.cuda import Bind, captured
from workers.clocks.host import Pace
from workers.inputs.batch import Arrays
from workers.measure import nvml
from workers.measure.nvml import Tenants
from workers.measure.pytorch import PyTorch
from workers.measure.timer import Timer, first_line, tried
from workers.peers.files import PeersAnswer, PeersRequest
from workers.sources import reference

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
Figures = Iterator[tuple[str, Callable[[], Mapping[str, Timed]]]]
"""What is to be done next, and what does it: the figures, by their names in ``PYTORCH``."""


class Ways:
    """The ways in which PyTorch may run a program.

    Parameters:
        time: the figures of an inference, said to compute in a precision, with images as NHWC or not.
        capture: the same inference as a CUDA graph.
    """

    def __init__(
        self,
        model: PyTorch,
        precision: Precision,
        time: Callable[[Bind, str, bool], Timed],
        capture: Callable[[Bind], Bind] = captured,
    ) -> None:
        self._model = model
        self._precision = precision
        self._dtype = _DTYPES[precision]
        self._time = time
        self._capture = capture

    def figures(self) -> Figures:
        """Every figure to take, in order. Graphs of eager code come last: a failed capture may leave the
        process unfit for more."""
        model, typed = self._model, partial(self._model.typed, self._dtype)
        yield "eager", lambda: {"eager": self._tried(model.eager, model.precision)}
        if model.precision != self._precision:
            yield "eager_typed", lambda: {"eager_typed": self._tried(typed)}
        yield "compiled", self._compiled
        yield (
            "eager_cuda_graph",
            lambda: {"eager_cuda_graph": self._tried(lambda: self._capture(typed()))},
        )

    def _compiled(self) -> Mapping[str, Timed]:
        """The compiled program without and with a CUDA graph, in the layout in which each is faster."""
        layouts = (True, False) if self._model.has_images else (False,)
        found: dict[str, list[Timed]] = {"compiled": [], "compiled_cuda_graph": []}
        for channels_last in layouts:
            made: list[Bind] = []

            def bind(made: list[Bind] = made) -> Bind:
                if not made:
                    made.append(self._model.compiled(self._dtype))
                return made[0]

            for name, prepared in (
                ("compiled", bind),
                ("compiled_cuda_graph", lambda bind=bind: self._capture(bind())),
            ):
                found[name].append(self._tried(prepared, channels_last=channels_last))
        return {name: _fastest(timed) for name, timed in found.items()}

    def _tried(
        self,
        prepared: Callable[[], Bind],
        precision: str | None = None,
        *,
        channels_last: bool = False,
    ) -> Timed:
        computes = precision or str(self._precision)
        return tried(
            lambda: self._time(prepared(), computes, channels_last),
            precision=computes,
            channels_last=channels_last,
        )


def _fastest(found: list[Timed]) -> Timed:
    """The fastest of a way's layouts. If one of them failed, it says so: the best may be unknown."""
    taken = min(found, key=lambda timed: timed.p50_ms or float("inf"))
    failed = [one for one in found if one.p50_ms is None]
    if taken.p50_ms is None or not failed:
        return taken
    layout = "NHWC" if failed[0].channels_last else "NCHW"
    said = f"with images as {layout} it couldn't be timed: {failed[0].reason}"
    return taken.model_copy(update={"warnings": [*taken.warnings, said]})


def answered(figures: Figures, path: Path) -> None:
    """Take the figures, and write the answer after each."""
    answer = PeersAnswer()
    for name, take in figures:
        answer.model_copy(update={"doing": name}).write(path)
        answer = PeersAnswer(peers={**answer.peers, **take()})
    answer.write(path)


def main(request: PeersRequest) -> None:
    """Answer a request, on the GPU that this process is pinned to."""
    choose_kernels(tf32=request.params.options.tf32)  # as the engine
    before = len(nvml.pids_on(request.uuid))
    program = reference.program(request.source, request.params)
    assert program is not None
    try:
        model, timer = _on_gpu(program, request, before)
    except Exception as err:  # of any type: PyTorch's failure on the GPU isn't the engine's
        failed = Timed(reason=first_line(err))
        PeersAnswer(peers=dict.fromkeys(PYTORCH, failed)).write(request.answer)
        return
    pace = Pace(
        warmup_s=request.warmup_s,
        duration_s=request.duration_s,
        min_iterations=request.min_iterations,
        max_s=request.max_s,
    )
    arrays = _arrays(request)

    def time(bind: Bind, precision: str, channels_last: bool) -> Timed:
        figure = timer.figure(bind, arrays, request.batch, pace, channels_last=channels_last)
        return figure.timed(precision)

    with folder_for_compilers():
        answered(Ways(model, request.precision, time).figures(), request.answer)


def _on_gpu(program: ExportedProgram, request: PeersRequest, before: int) -> tuple[PyTorch, Timer]:
    torch.cuda.init()
    model = PyTorch(program)
    return model, Timer(Tenants.now(request.uuid, before, beside=request.beside))


def _arrays(request: PeersRequest) -> Arrays:
    with np.load(request.arrays, allow_pickle=False) as found:
        return {name: found[f"arr_{index}"] for index, name in enumerate(request.inputs)}


def _die_first() -> None:
    """Have the kernel kill this process before the engine's when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    die_with_parent()
    _die_first()
    main(PeersRequest.model_validate_json(Path(sys.argv[1]).read_text()))
