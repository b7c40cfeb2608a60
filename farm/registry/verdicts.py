"""What a compressed engine gained over its uncompressed twin, and what that cost, in words. Pure, no I/O."""

from __future__ import annotations

from farm.schemas.engines import Comparison, EngineView


def verdict(engine: EngineView) -> str | None:
    """``smaller and faster than fp16, less accurate``; ``fp16 is smaller and faster here``.

    None if the engine isn't compressed, or has no twin. It is said of rounded figures, as they are shown.
    """
    found = engine.against
    if found is None:
        return None
    twin = f"unpruned {found.precision}" if engine.prune else str(found.precision)
    gains, costs = _gains(found)
    if gains and costs:
        return f"{_listed(gains)} than {twin}, {_listed(costs)}"
    if gains:
        return f"{_listed(gains)} than {twin}"
    if costs:
        return f"{twin} is {_listed([_OPPOSITE[one] for one in costs])} here"
    return f"no gain over {twin}"


_OPPOSITE = {"larger": "smaller", "slower": "faster", "less accurate": "more accurate"}


def _gains(found: Comparison) -> tuple[list[str], list[str]]:
    """What is better than at the twin, and what is worse."""
    drop = found.agreement_drop if found.task_drop is None else found.task_drop
    figures = (
        (found.size_ratio, 1.0, "smaller", "larger", 2),
        (found.latency_ratio, 1.0, "faster", "slower", 2),
        (drop, 0.0, "more accurate", "less accurate", 3),
    )
    gains, costs = [], []
    for figure, even, better, worse, digits in figures:
        value = even if figure is None else round(figure, digits)
        if value < even:
            gains.append(better)
        elif value > even:
            costs.append(worse)
    return gains, costs


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
