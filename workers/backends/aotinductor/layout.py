"""Chooses a program's memory layout by timing it before it is compiled.

The kernels of convolutions are the same then, and take nearly all of the time, so a second of replays
decides what a second compilation would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from workers.graphs.check import brief
from workers.programs.lowered import Lowered

_WARMUP, _REPLAYS = 10, 40


def laid_out(
    module: Lowered,
    inputs: Sequence[torch.Tensor],
    time_ms: Callable[[Lowered, Sequence[torch.Tensor]], float] | None = None,
) -> Lowered:
    """The module with its images' channels last where that is faster on the current GPU.

    Parameters:
        inputs: at the shapes to be fast at.
        time_ms: the time of one run; replays of a CUDA graph by default.
    """
    if not module.has_images:
        return module
    timed = time_ms or _replayed_ms
    try:
        first = timed(module, inputs)
        last = timed(module.channels_last(), inputs)
    except RuntimeError as err:  # it can't be captured, or memory runs out
        print(f"channels last, untried: {brief(err)}", flush=True)
        return module.channels_last()
    print(f"channels first {first:.3f} ms, last {last:.3f} ms, before compilation", flush=True)
    return module.channels_last(last <= first)


def _replayed_ms(module: Lowered, inputs: Sequence[torch.Tensor]) -> float:
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # which lays the weights out
        with torch.cuda.stream(stream):
            module(*inputs)  # don't capture the setup of a first run
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            module(*inputs)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(_WARMUP + _REPLAYS):
        if number == _WARMUP:
            began.record()
        graph.replay()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / _REPLAYS
