"""Ranks engines for a pull, with the reason: by measurements, or else by size."""

from __future__ import annotations

from collections.abc import Sequence

from farm.registry import latencies
from farm.reports.metrics import Settings
from farm.schemas.engines import EngineView
from farm.specs.states import EngineState

#: The order without measurements, among engines for the same GPU.
_RUNTIME_ORDER = ("tensorrt", "tensorrt-rtx", "aotinductor", "onnxruntime", "torchscript")


def best(
    found: Sequence[EngineView], tag: str, *, by_precision: bool
) -> tuple[EngineView, Sequence[EngineView]]:
    """The best engine, and the candidates it was chosen from, including itself.

    The newest version first, then engines without doubts, unpruned ones, and the exact product before its
    compute capability. Of those the fastest if their latencies are comparable, or else the first
    runtime's smallest. With a requested precision, the newest one instead of the fastest or smallest.

    Parameters:
        found: newest first.
        by_precision: whether they are of a requested precision.
    """

    def place(engine: EngineView) -> tuple[int, bool, bool, bool]:
        doubtful = engine.state is EngineState.DOUBTFUL
        return -engine.version, doubtful, engine.prune is not None, engine.gpu != tag

    first = min(place(engine) for engine in found)
    equals = [engine for engine in found if place(engine) == first]
    if by_precision:
        return min(equals, key=_runtime), equals
    compared = measured(equals)
    if compared:
        return min(compared, key=_latency), compared
    runtime = min(map(_runtime, equals))
    of_runtime = [engine for engine in equals if _runtime(engine) == runtime]
    return min(of_runtime, key=lambda engine: engine.bytes), of_runtime


def measured(engines: Sequence[EngineView]) -> Sequence[EngineView]:
    """The largest group of two or more with comparable latencies; empty without one."""
    groups: list[list[EngineView]] = []
    for engine in engines:
        for group in groups:
            if latencies.not_comparable(engine.metrics, group[0].metrics) is None:
                group.append(engine)
                break
        else:
            groups.append([engine])
    largest = max(groups, key=len, default=[])
    return largest if len(largest) > 1 else []


def _runtime(engine: EngineView) -> int:
    known = engine.runtime in _RUNTIME_ORDER
    return _RUNTIME_ORDER.index(engine.runtime) if known else len(_RUNTIME_ORDER)


def _latency(engine: EngineView) -> float:
    return latencies.p50_ms(engine.metrics) or float("inf")


def reason(taken: EngineView, chosen_from: Sequence[EngineView]) -> str:
    """``int8 is the fastest of fp16, int8: p50 1.2 ms against 1.9 ms, at batch 8 on NVIDIA H200``."""
    others = [engine for engine in chosen_from if engine.id != taken.id]
    if not others:
        return f"{_called(taken, others)} is the only one"
    name = _called(taken, others)
    group = ", ".join(dict.fromkeys(_called(one, others) for one in (taken, *others)))
    fastest = len(measured(chosen_from)) == len(chosen_from)
    if fastest:
        values = [latencies.p50_ms(one.metrics) or 0.0 for one in (taken, *others)]
        assert taken.metrics is not None
        settings = taken.metrics.settings or Settings()
        at = f"at batch {taken.metrics.batch} on {settings.cpu or settings.device}"
        second = min(values[1:])
        return f"{name} is the fastest of {group}: p50 {values[0]:.3g} ms against {second:.3g} ms, {at}"
    second = min(one.bytes for one in others)
    why_not = next(
        filter(None, (latencies.not_comparable(taken.metrics, one.metrics) for one in others)), ""
    )
    size = "the smallest" if taken.bytes < second else "as small as any"
    return (
        f"{name} is {size} of {group}: {taken.bytes:,} bytes against {second:,}; "
        f"their latencies aren't comparable: {why_not}"
    )


def _called(engine: EngineView, others: Sequence[EngineView]) -> str:
    several = any(one.runtime != engine.runtime for one in others)
    return f"{engine.precision} by {engine.runtime}" if several else str(engine.precision)
