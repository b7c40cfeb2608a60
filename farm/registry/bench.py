"""A model's engines for one GPU in one table, and the one that a pull takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Build
from farm.registry import catalog, figures, goals, names, ranking, versions
from farm.registry.ranking import Ranking
from farm.registry.unbuilt import unbuilt
from farm.reports.metrics import Metrics
from farm.schemas.bench import Bench, BenchGoal, BenchRow
from farm.schemas.builds import LeftOut
from farm.schemas.engines import EngineView
from farm.specs import gpus
from farm.specs.goals import Aim, Goal
from farm.specs.runtime import Target
from farm.specs.states import LIVE, EngineState

_MOST = 1000
_MOST_BUILDS = 100
#: Other builds may leave something out as well: what they were asked to skip.
_IS_BENCH = Build.request[("bench", "wait_for_workers")].as_string().is_not(None)


def bench(
    session: Session,
    model: str,
    gpu: str,
    *,
    goal: Goal | None = None,
    version: int | None = None,
) -> Bench:
    """A version's engines for a GPU, best first, and those that couldn't be built.

    Parameters:
        goal: instead of the one kept for the version and the GPU, or else latency.
        version: by default the newest.

    Raises:
        NotFound: there is no such model or version.
        NameAmbiguous, UnknownGpu, InvalidRequest
    """
    tag = gpus.canonical(gpu)
    known = names.named(session, model)
    version_id, number = versions.given_or_newest(session, known, version)
    followed = goals.kept(session, known.id, number, tag) or Goal()
    wanted = goal or followed
    found = catalog.find(session, known, gpu=tag, version=number, only_whole=True, limit=_MOST)
    good = [one for one in found if one.state is EngineState.READY and one.yanked is None]
    ranked = ranking.rank(good, tag, wanted) if good else None
    tags = {tag, gpus.compute_capability(tag)}
    missing = list(_unbuilt(session, version_id, tags))
    rows = [_row(one, wanted, ranked) for one in found]
    return Bench(
        model=known.name,
        version=number,
        gpu=tag,
        goal=BenchGoal(aim=wanted.aim, batch=wanted.batch, followed=wanted == followed),
        rows=sorted(rows, key=lambda row: _order(row, wanted)) + missing,
        winner=ranked.best.id if ranked else None,
        why=ranking.reason(ranked) if ranked else _why_none(found, missing),
        left_out=list(_left_out(session, version_id, tags, found)),
    )


def _row(engine: EngineView, goal: Goal, ranked: Ranking | None) -> BenchRow:
    target = Target(runtime=engine.runtime, gpu=engine.gpu)
    return BenchRow(
        target=str(target),
        runtime=engine.runtime,
        runtime_version=engine.runtime_version,
        precision=engine.precision,
        prune=engine.prune,
        engine=engine.id,
        digest=engine.digest,
        state=engine.state,
        place=_place(engine, ranked),
        **(_speed(engine.metrics, goal) if engine.metrics else {}),
        accuracy=engine.accuracy,
        bytes=engine.bytes,
        doubts=engine.doubts,
        passed_over=_passed_over(engine, goal, ranked),
    )


def _place(engine: EngineView, ranked: Ranking | None) -> int | None:
    if ranked is None or not (ranked.compared or engine.id == ranked.best.id):
        return None
    ids = [one.id for one in ranked.chosen_from]
    return ids.index(engine.id) + 1 if engine.id in ids else None


def _speed(metrics: Metrics, goal: Goal) -> dict[str, Any]:
    latency = figures.latency(metrics, goal.batch)
    throughput = figures.throughput(metrics, goal.batch)
    is_headline = latency is not None and latency.batch == metrics.batch
    return {
        "latency_ms": latency and latency.value,
        "batch": latency and latency.batch,
        "cuda_graph": figures.uses_cuda_graph(metrics) if is_headline else None,
        "samples_per_s": throughput and throughput.value,
        "samples_batch": throughput and throughput.batch,
        "speed_up_over_best": metrics.speed_up_over_best if is_headline else None,
    }


def _passed_over(engine: EngineView, goal: Goal, ranked: Ranking | None) -> str | None:
    if engine.yanked is not None:
        return f"it was yanked: {engine.yanked}"
    if engine.state is EngineState.DOUBTFUL:
        return "it failed a gate"
    if ranked is None:
        return None
    found = ranked.passed_over.get(engine.id)
    # If nothing could be compared: what is wrong with its own figures?
    return found if found or ranked.compared else figures.doubt(engine.metrics, goal)


def _order(row: BenchRow, goal: Goal) -> tuple[bool, int, bool, float]:
    """By place, then the ready ones, by their figures."""
    figure = row.latency_ms if goal.aim is Aim.LATENCY else row.samples_per_s
    cost = float("inf") if figure is None else figure if goal.aim is Aim.LATENCY else -figure
    return row.place is None, row.place or 0, row.state is EngineState.DOUBTFUL, cost


def _why_none(found: Sequence[EngineView], unbuilt: Sequence[BenchRow]) -> str:
    if found:
        return "no engine passed its gates"
    if any(row.state in LIVE for row in unbuilt):
        return "no engine is finished yet"
    return "no engine could be built" if unbuilt else "there are no engines yet"


def _unbuilt(session: Session, version_id: int, tags: set[str]) -> Iterator[BenchRow]:
    """What the newest build that wanted it hasn't got: not yet, or not at all."""
    for one in unbuilt(session, version_id):
        if one.target.gpu in tags:
            yield BenchRow(
                target=str(one.target),
                runtime=one.target.runtime,
                precision=one.precision,
                state=one.state,
                error=one.error,
            )


def _left_out(
    session: Session, version_id: int, tags: set[str], found: Iterable[EngineView]
) -> Iterator[LeftOut]:
    """What the newest bench of this GPU left out and nobody has built otherwise."""
    there = {(f"{one.runtime}:{one.gpu}", one.precision) for one in found}
    entries = session.scalars(
        select(Build.left_out)
        .where(Build.version_id == version_id, Build.left_out.is_not(None), _IS_BENCH)
        .order_by(Build.id.desc())
        .limit(_MOST_BUILDS)
    )
    for kept in entries:
        of_gpu = [one for one in map(LeftOut.model_validate, kept or ()) if _gpu(one) in tags]
        if not of_gpu:
            continue
        for one in of_gpu:
            missing = [each for each in one.precisions if (one.target, each) not in there]
            if missing:
                yield one.model_copy(update={"precisions": missing})
        return


def _gpu(entry: LeftOut) -> str:
    return Target.parse(entry.target).gpu
