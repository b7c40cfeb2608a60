"""Fake stages: they produce what a worker would submit, without PyTorch, ONNX or TensorRT.

Outputs have the roles, and facts the shape, that `farm.stages` requires for each kind, so a farm accepts
them like a worker's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farm.errors import FarmError
from farm.reports.histograms import Histograms
from farm.reports.layers import ComputeView, LayerReport
from farm.specs.roles import Role
from farm.stages import STAGES, JobKind, check_facts

_TENSORS: list[dict[str, Any]] = [{"name": "x", "dtype": "float32", "shape": ["n", 4]}]
_INTERFACE: dict[str, Any] = {"inputs": _TENSORS, "outputs": [_TENSORS[0] | {"name": "y"}]}
_FACTS: Mapping[JobKind, Mapping[str, Any]] = {
    JobKind.PRUNE: {"sparsity": 0.5},
    JobKind.EXPORT: _INTERFACE | {"opset": 20},
    JobKind.CAST: _INTERFACE | {"share": 1.0},
    JobKind.CALIBRATE: {"samples": 64, "method": "entropy", "qdq_pairs": 1},
    JobKind.BUILD: _INTERFACE | {"runtime_version": "0", "profiles": []},
    JobKind.MEASURE: {
        "accuracy": {"cosine_mean": 1.0, "cosine_min": 1.0, "measured_on": "typed-onnx"},
        "metrics": None,
        "metrics_reason": "nothing was measured: this stage is a fake",
    },
    JobKind.INFER: {"outputs": [_TENSORS[0] | {"name": "y", "shape": [8, 4]}], "run_ms": 1.0},
}


#: What a worker keeps for itself.
_WORKERS = (Role.TIMING_CACHE, Role.PEERS)


#: What the API itself reads.
_REPORTS: Mapping[Role, str] = {
    Role.LAYERS: LayerReport(
        source="a fake stage", compute=ComputeView(macs=None, types={}), products=[], layers=[]
    ).model_dump_json(),
    Role.HISTOGRAMS: Histograms().model_dump_json(),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A stage's results: role → file, and its facts."""

    outputs: Mapping[Role, Path]
    facts: Mapping[str, Any]


@dataclass(kw_only=True)
class FakeStages:
    """Runs any stage of a job instantly.

    Parameters:
        failures: kind → the error that its stage raises instead.
        facts: kind → the facts that its stage reports differently.
    """

    failures: dict[JobKind, FarmError] = field(default_factory=dict)
    facts: dict[JobKind, dict[str, Any]] = field(default_factory=dict)
    ran: list[JobKind] = field(default_factory=list, init=False)  #: in order

    def run(self, kind: JobKind, workdir: Path, params: Mapping[str, Any] | None = None) -> Made:
        """Make a file for every role that this kind may make, below a folder.

        Stages with different parameters make different bytes; the same stage makes the same ones again.

        Raises:
            FarmError: the one in `failures`.
            TooMuch: `facts` has something that no stage of this kind reports.
        """
        self.ran.append(kind)
        if kind in self.failures:
            raise self.failures[kind]
        facts = {**_FACTS[kind], **self.facts.get(kind, {})}
        check_facts(kind, facts)
        spec = STAGES[kind]
        roles = (*spec.makes, *(role for role in spec.may_make if role not in _WORKERS))
        said = json.dumps(params or {}, sort_keys=True, default=str)
        outputs = {}
        for role in roles:
            path = workdir / f"{kind}-{role}"
            path.write_text(_REPORTS.get(role) or f"a fake {role} of {kind} {said}\n")
            outputs[role] = path
        return Made(outputs=outputs, facts=facts)
