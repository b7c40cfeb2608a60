"""What compressed engines gained, in words."""

from __future__ import annotations

import pytest

from farm.registry.verdicts import verdict
from farm.schemas.engines import Comparison, EngineView
from farm.specs.precision import Precision


def judged(size: float, latency: float | None, drop: float | None, prune: str | None = None) -> str:
    against = Comparison(
        engine="twin",
        precision=Precision.FP16,
        size_ratio=size,
        latency_ratio=latency,
        task_drop=drop,
        agreement_drop=0.5,
    )
    if drop is None:
        against = against.model_copy(update={"agreement_drop": None})
    found = verdict(EngineView.model_construct(against=against, prune=prune))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ((0.5, 0.6, 0.0), "smaller and faster than fp16"),
        ((0.5, 0.6, 0.02), "smaller and faster than fp16, less accurate"),
        ((1.2, 1.5, 0.02), "fp16 is smaller, faster and more accurate here"),
        ((1.2, 1.5, -0.02), "more accurate than fp16, larger and slower"),
        ((1.2, None, None), "fp16 is smaller here"),
        ((1.001, 0.998, 0.0), "no gain over fp16"),
    ],
)
def test_what_was_gained_and_what_it_cost_is_told(figures, told: str) -> None:
    assert judged(*figures) == told


def test_a_pruned_engine_is_set_beside_the_unpruned_one() -> None:
    assert judged(0.6, None, None, prune="2:4") == "smaller than unpruned fp16"


def test_without_a_twin_nothing_is_said() -> None:
    assert verdict(EngineView.model_construct(against=None, prune=None)) is None
