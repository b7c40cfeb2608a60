"""Ranks engines for a pull or a bench, with the reason: by measurements, or else by size. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.planning import targets
from farm.registry import figures
from farm.reports.metrics import Settings
from farm.schemas.engines import EngineView
from farm.specs import gpus
from farm.specs.goals import Aim, Goal
from farm.specs.reach import Reach, reach
from farm.specs.runtime import Runtime
from farm.specs.states import EngineState

#: The order without measurements, among engines for the same GPU.
_RUNTIME_ORDER = ("tensorrt", "tensorrt-rtx", "aotinductor", "onnxruntime", "torchscript")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The best engine, and why the others aren't."""

    best: EngineView
    #: Those that it was chosen from, itself included. If they were compared, the best first.
    chosen_from: Sequence[EngineView]
    goal: Goal
    compared: bool  #: by figures; else they were chosen by runtime and size
    equals: int  #: how many could have won
    passed_over: Mapping[str, str]  #: engine → why it can't win


def rank(
    found: Sequence[EngineView],
    tag: str,
    goal: Goal = Goal(),
    *,
    by_precision: bool = False,
) -> Ranking:
    """Rank engines.

    The newest version first, then engines without doubts, unpruned ones, and those built for the product
    itself before those for its compute capability and portable ones, where the runtime makes a difference.
    Of these the best by the goal if their figures are comparable, or else the first runtime's smallest. With
    a requested precision only each runtime's newest counts.

    Parameters:
        found: newest first.
        tag: of the GPU that they are ranked for.
        by_precision: whether they are of a requested precision.
    """
    first = min(_place(engine, tag) for engine in found)
    equals: Sequence[EngineView] = [one for one in found if _place(one, tag) == first]
    passed_over = {
        engine.id: _behind(engine, first, tag) for engine in found if engine not in equals
    }
    if by_precision:
        newest = _newest_of_each(equals)
        passed_over |= {
            engine.id: f"a newer one by {engine.runtime} was built"
            for engine in equals
            if engine not in newest
        }
        equals = newest
    compared = measured(equals, tag, goal)
    if compared:
        passed_over |= {
            engine.id: figures.not_comparable(engine.metrics, compared[0].metrics, goal)
            or "it was measured on another GPU"
            for engine in equals
            if engine not in compared
        }
        chosen_from = compared
    else:
        runtime = min(map(_runtime, equals))
        of_runtime = [engine for engine in equals if _runtime(engine) == runtime]
        chosen_from = sorted(of_runtime, key=lambda engine: engine.bytes)
        passed_over |= {
            engine.id: f"no figures could be compared, and {chosen_from[0].runtime} comes first"
            for engine in equals
            if engine not in of_runtime
        }
    return Ranking(
        best=chosen_from[0],
        chosen_from=chosen_from,
        goal=goal,
        compared=bool(compared),
        equals=len(equals),
        passed_over=passed_over,
    )


def _newest_of_each(engines: Sequence[EngineView]) -> Sequence[EngineView]:
    """Each runtime's newest engine."""
    newest: dict[str, EngineView] = {}
    for engine in engines:
        newest.setdefault(engine.runtime, engine)
    return list(newest.values())


def _place(engine: EngineView, tag: str) -> tuple[int, bool, bool, Reach]:
    doubtful = engine.state is EngineState.DOUBTFUL
    return -engine.version, doubtful, engine.prune is not None, _closeness(engine, tag)


def _closeness(engine: EngineView, tag: str) -> Reach:
    """Exact if its runtime can't build anything closer to the GPU."""
    if engine.runtime in set(Runtime) and engine.gpu == targets.normal(engine.runtime, tag).gpu:
        return Reach.EXACT
    found = reach(engine, tag)
    return Reach.PORTABLE if found is None else found


def _behind(engine: EngineView, first: tuple[int, bool, bool, Reach], tag: str) -> str:
    version, doubtful, pruned, _ = _place(engine, tag)
    if version != first[0]:
        return f"version {-first[0]} is newer"
    if doubtful != first[1]:
        return f"it failed a gate: {'; '.join(engine.doubts)}"
    if pruned != first[2]:
        return f"it was pruned {engine.prune}: pulled only where that is asked for"
    closer = f"for {tag} itself" if first[3] is Reach.EXACT else f"closer to {tag}"
    return f"it was built for {engine.gpu}, and there are engines {closer}"


def measured(engines: Sequence[EngineView], tag: str, goal: Goal = Goal()) -> Sequence[EngineView]:
    """The largest group of two or more with comparable figures, best first; empty without one.

    Of engines that were measured on the GPU itself, if there are any.
    """
    groups: list[list[EngineView]] = []
    for engine in _on(tag, engines):
        for group in groups:
            if figures.not_comparable(engine.metrics, group[0].metrics, goal) is None:
                group.append(engine)
                break
        else:
            groups.append([engine])
    largest = max(groups, key=len, default=[])
    if len(largest) < 2:
        return []
    return sorted(largest, key=lambda engine: _cost(engine, goal))


def _on(tag: str, engines: Sequence[EngineView]) -> Sequence[EngineView]:
    """The engines that were measured on this product; all of them if none was."""
    return [one for one in engines if gpus.product_of(_device(one)) == tag] or engines


def _device(engine: EngineView) -> str:
    settings = engine.metrics.settings if engine.metrics else None
    return (settings and settings.device) or ""


def _runtime(engine: EngineView) -> int:
    known = engine.runtime in _RUNTIME_ORDER
    return _RUNTIME_ORDER.index(engine.runtime) if known else len(_RUNTIME_ORDER)


def _cost(engine: EngineView, goal: Goal) -> float:
    found = figures.figure(engine.metrics, goal)
    assert found is not None
    return found.value if goal.aim is Aim.LATENCY else -found.value


def reason(ranking: Ranking) -> str:
    """``int8 is the fastest of fp16, int8: p50 1.2 ms against 1.9 ms, at batch 8 on NVIDIA H200``."""
    taken, chosen_from = ranking.best, ranking.chosen_from
    others = [engine for engine in chosen_from if engine.id != taken.id]
    if not others and ranking.equals > 1:
        return (
            f"{_called(taken, chosen_from)} is the only one by {taken.runtime}, the first runtime: "
            "no figures could be compared"
        )
    if not others:
        return f"{_called(taken, chosen_from)} is the only one"
    name = _called(taken, chosen_from)
    group = ", ".join(dict.fromkeys(_called(one, chosen_from) for one in (taken, *others)))
    if ranking.compared:
        return f"{name} {_wins(ranking)} of {group}: {_figures(taken, others[0], ranking.goal)}"
    second = min(one.bytes for one in others)
    reasons = (figures.not_comparable(taken.metrics, one.metrics, ranking.goal) for one in others)
    why_not = next(filter(None, reasons), "")
    size = "the smallest" if taken.bytes < second else "as small as any"
    return (
        f"{name} is {size} of {group}: {taken.bytes:,} bytes against {second:,}; "
        f"their {figures.NAMES[ranking.goal.aim]} aren't comparable: {why_not}"
    )


def behind(engine: EngineView, ranking: Ranking) -> str:
    """Why an engine that the best was chosen from isn't the best."""
    best = ranking.best
    if ranking.compared:
        slower = "slower" if ranking.goal.aim is Aim.LATENCY else "of lower throughput"
        return f"it is {slower}: {_figures(engine, best, ranking.goal)}"
    if engine.bytes > best.bytes:
        return f"it is larger: {engine.bytes:,} bytes against {best.bytes:,}"
    return f"{best.id} is newer, or of an earlier runtime"


def _wins(ranking: Ranking) -> str:
    return "is the fastest" if ranking.goal.aim is Aim.LATENCY else "has the highest throughput"


def _figures(taken: EngineView, second: EngineView, goal: Goal) -> str:
    mine, its = figures.figure(taken.metrics, goal), figures.figure(second.metrics, goal)
    assert taken.metrics is not None
    assert mine is not None
    assert its is not None
    settings = taken.metrics.settings or Settings()
    at = f"at batch {mine.batch} on {settings.cpu or settings.device}"
    against = figures.said(its, goal).removeprefix("p50 ")
    if its.batch != mine.batch:
        against += f" at batch {its.batch}"
    return f"{figures.said(mine, goal)} against {against}, {at}"


def _called(engine: EngineView, among: Sequence[EngineView]) -> str:
    several = any(one.runtime != engine.runtime for one in among)
    return f"{engine.precision} by {engine.runtime}" if several else str(engine.precision)
