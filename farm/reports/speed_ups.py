"""The speed-ups of a GPU engine over PyTorch: like with like, or the reason why there is none.

Two figures are compared only if they are of the same precision, both with a CUDA graph or both without one,
if neither has the GPU wait for the host, and if nobody else was on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from farm.reports.metrics import Metrics, Timed
from farm.specs.precision import Precision

#: The fields of PyTorch's figures → what they are called. In the engine's precision, except ``eager``.
PYTORCH = {
    "eager": "PyTorch eager",
    "eager_typed": "PyTorch eager",
    "compiled": "PyTorch compiled",
    "compiled_cuda_graph": "PyTorch compiled, with a CUDA graph",
    "eager_cuda_graph": "PyTorch eager, with a CUDA graph",
}
#: What PyTorch is expected to do best: unless it is known, so is PyTorch's best.
_BEST = "compiled_cuda_graph"
_PYTORCHS = (Precision.FP32, Precision.FP16, Precision.BF16)
_ENGINE, _ENGINE_GRAPH = "the engine", "the engine with a CUDA graph"


def peers_precision(precision: Precision) -> Precision:
    """The precision PyTorch computes in beside an engine: it has no int8 or fp8 of its own."""
    return precision if precision in _PYTORCHS else Precision.FP16


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One side of a ratio."""

    name: str
    timed: Timed | None

    def missing(self) -> str | None:
        if self.timed is not None and self.timed.p50_ms is not None:
            return None
        reason = (self.timed and self.timed.reason) or "it wasn't measured"
        return f"{self.name} has no figure: {reason}"

    def unlike(self, precision: str | None) -> str | None:
        if self.timed is None or self.timed.precision == precision:
            return None
        return f"{self.name} computed in {self.timed.precision}, not in {precision}"

    def refusal(self) -> str | None:
        """Why nothing may be compared with this figure."""
        if (missing := self.missing()) or self.timed is None:
            return missing
        if self.timed.is_host_bound:
            return f"{self.name} is host-bound: the GPU waited for the host"
        others = self.timed.gpu.other_processes if self.timed.gpu else None
        if others:
            return f"{others} other processes were on the GPU while {self.name} was timed"
        return None


def with_speed_ups(metrics: Metrics) -> Metrics:
    """The same figures, with every speed-up or its reason."""
    plain = _Side(name=_ENGINE, timed=metrics)
    graph = _Side(name=_ENGINE_GRAPH, timed=metrics.cuda_graph)
    pairs = {
        "speed_up": (_eager(metrics), plain),
        "speed_up_over_compiled": (_peer(metrics, "compiled"), plain),
        "speed_up_over_compiled_with_cuda_graph": (_peer(metrics, "compiled_cuda_graph"), graph),
    }
    found: dict[str, Any] = {}
    for name, (peer, engine) in pairs.items():
        found[name], found[f"{name}_reason"] = _ratio(peer, engine, metrics.peers_precision)
    return metrics.model_copy(update=found | _over_best(metrics, plain, graph))


def _over_best(metrics: Metrics, plain: _Side, graph: _Side) -> dict[str, Any]:
    """The engine at its best beside the fastest of PyTorch's figures in this precision."""
    engine = plain if metrics.at_its_best is metrics else graph
    expected = _peer(metrics, _BEST)
    unknown = expected.missing() or expected.unlike(metrics.peers_precision)
    best = None if unknown else min(_alike(metrics), key=lambda name: _p50(metrics, name))
    value: float | None = None
    reason: str | None = f"PyTorch's best isn't known: {unknown}"
    if best is not None:
        value, reason = _ratio(_peer(metrics, best), engine, metrics.peers_precision)
    return {
        "speed_up_over_best": value,
        "speed_up_over_best_reason": reason,
        "best_of_pytorch": best,
    }


def _alike(metrics: Metrics) -> list[str]:
    """The names of PyTorch's figures that are of the engine's precision."""
    peers = ((name, getattr(metrics, name)) for name in PYTORCH)
    return [
        name
        for name, peer in peers
        if peer and peer.p50_ms is not None and peer.precision == metrics.peers_precision
    ]


def _p50(metrics: Metrics, name: str) -> float:
    peer: Timed = getattr(metrics, name)
    assert peer.p50_ms is not None
    return peer.p50_ms


def _eager(metrics: Metrics) -> _Side:
    """PyTorch eager in the engine's precision: the source as it is, where it has it."""
    eager = metrics.eager
    is_like = eager is not None and eager.precision == metrics.peers_precision
    return _peer(metrics, "eager" if is_like or metrics.eager_typed is None else "eager_typed")


def _peer(metrics: Metrics, name: str) -> _Side:
    return _Side(name=PYTORCH[name], timed=getattr(metrics, name))


def _ratio(peer: _Side, engine: _Side, precision: str | None) -> tuple[float | None, str | None]:
    for side in (engine, peer):
        reason = side.refusal()
        if reason:
            return None, reason
    assert peer.timed is not None
    assert engine.timed is not None
    if unlike := peer.unlike(precision):
        return None, unlike
    assert peer.timed.p50_ms is not None
    assert engine.timed.p50_ms is not None
    return round(peer.timed.p50_ms / engine.timed.p50_ms, 3), None
