"""A stage's request, and the alternatives that its target has."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from farm.planning import policy
from farm.specs import gpus as gpu_tags
from farm.specs.precision import CALIBRATED, Precision
from farm.specs.runtime import Runtime, Target
from farm.specs.source import SourceFormat
from farm.stages import JobKind, StageParams


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A stage's request."""

    stage: JobKind
    precision: Precision | None = None
    target: Target | None = None  #: None if one run serves several
    source: SourceFormat | None = None  #: None if the stage starts from ONNX
    data: frozenset[str] = frozenset()  #: the user's: ``calibration``, ``evaluation``
    may_drop: bool = False  #: whether the user has set an allowed loss of accuracy
    pruned: bool = False

    @classmethod
    def of(cls, stage: JobKind, params: StageParams, roles: Collection[str]) -> Self:
        """The request of a stage with these parameters and inputs."""
        return cls(
            stage=stage,
            precision=getattr(params, "precision", None),
            target=getattr(params, "target", None),
            source=getattr(params, "format", None),
            data=frozenset(roles) & {"calibration", "evaluation"},
            may_drop=getattr(params, "max_drop", None) is not None,
            pruned=getattr(params, "pruned", False),
        )

    def __str__(self) -> str:
        """``build in fp16 for tensorrt-rtx:sm_89``."""
        in_type = f" in {self.precision}" if self.precision else ""
        return f"{self.stage}{in_type}{f' for {self.target}' if self.target else ''}"

    def better(self, *wanted: Precision) -> str:
        """The precisions that weren't requested and that the target supports; empty if none."""
        return _any_of(
            "choose",
            [
                _named(one, self)
                for one in wanted
                if one is not self.precision and self._serves(one, self.target)
            ],
        )

    def elsewhere(self, *runtimes: Runtime) -> str:
        """The same precision in other runtimes, on this GPU or else on CPUs; empty if none."""
        if self.target is None:
            return ""
        gpus = dict.fromkeys((self.target.gpu, gpu_tags.CPU))
        there = [Target(runtime=runtime, gpu=gpu) for gpu in gpus for runtime in runtimes]
        found = [
            str(target)
            for target in there
            if target != self.target and self._serves(self.precision, target)
        ]
        return _any_of("build it for", found)

    def misses(self, hint: str) -> bool:
        """Whether a hint advises something already requested, or that the target lacks."""
        chosen = [
            Precision(word) for list_ in _CHOICE.findall(hint) for word in _WORD.findall(list_)
        ]
        return any(
            one is self.precision or not self._serves(one, self.target)
            for one in chosen
            if self.precision is not None
        )

    def _serves(self, precision: Precision | None, target: Target | None) -> bool:
        if target is not None:
            return policy.refusal(target, precision) is None
        return precision is not Precision.INT8_DYNAMIC


_WORD = re.compile("|".join(sorted((str(one) for one in Precision), key=len, reverse=True)))
_CHOICE = re.compile(rf"\bchoose ((?:(?:{_WORD.pattern})(?:, or |, | or )?)+)")


def _named(precision: Precision, asked: Asked) -> str:
    if precision in CALIBRATED and asked.precision not in CALIBRATED and not asked.data:
        return f"{precision} with calibration data"
    if precision is Precision.BF16 and asked.target is None:
        return "bf16 for GPUs of sm_80 and later"
    return str(precision)


def _any_of(verb: str, things: list[str]) -> str:
    *others, last = things or [""]
    return f"{verb} {', '.join(others)}{' or ' * bool(others)}{last}" if things else ""


def either(*ways: str) -> str:
    """Join the available alternatives into one sentence."""
    return ", or ".join(filter(None, ways))
