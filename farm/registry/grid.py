"""A version's engines by GPU and precision: which of them pulls take, and why there is none where there is
none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Build, Wanted
from farm.errors import UnknownGpu
from farm.planning import policy
from farm.registry import catalog, goals, ranking, versions
from farm.registry.names import Named
from farm.registry.ranking import Ranking
from farm.registry.twins import beside_twins
from farm.registry.unbuilt import Unbuilt, unbuilt
from farm.schemas.builds import LeftOut
from farm.schemas.engines import EngineView
from farm.schemas.problems import Failure
from farm.specs import gpus
from farm.specs.goals import Goal
from farm.specs.precision import Precision
from farm.specs.reach import reach
from farm.specs.runtime import Runtime, Target
from farm.specs.states import LIVE, EngineState, JobState

_MOST_ENGINES = 500
_MOST_BUILDS = 100


class Missing(StrEnum):
    """What became of an engine that isn't there."""

    RUNNING = "being built"
    QUEUED = "queued"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LEFT_OUT = "left out"  #: a build was asked for it, and couldn't make it
    REFUSED = "can't be built"  #: nobody asked, and no worker could
    NOT_REQUESTED = "not requested"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Why there is no engine."""

    missing: Missing
    why: str = ""
    hint: str | None = None
    target: str | None = None
    build: str | None = None
    job: int | None = None
    queue: str | None = None  #: of workers that can run the job, while it is queued


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An engine of a cell.

    Parameters:
        is_best: whether pulls for the row's GPU take it.
        why: why they do, or don't.
    """

    engine: EngineView
    is_best: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    engines: Sequence[Placed] = ()
    gaps: Sequence[Gap] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """A GPU.

    Parameters:
        asked: the products for which builds asked for it, if it is their compute capability.
        best: what pulls for it take; maybe an engine of another row.
        why: why it is the best, or why there is none.
    """

    gpu: str
    asked: Sequence[str]
    cells: Mapping[Precision, Cell]
    best: EngineView | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Parameters:
    precisions: those that some build asked for.
    others: the rest.
    is_whole: whether all of the version's engines are in it.
    """

    precisions: Sequence[Precision]
    others: Sequence[Precision]
    rows: Sequence[Row]
    is_whole: bool


def grid(session: Session, model: Named, number: int) -> Grid:
    """A version's engines, by GPU and precision.

    Raises:
        NotFound
    """
    version_id = versions.version_id(session, model, number)
    found = beside_twins(
        session, catalog.find(session, model, version=number, limit=_MOST_ENGINES + 1)
    )
    pulled = catalog.find(
        session, model, version=number, only_whole=True, yanked=False, limit=_MOST_ENGINES
    )
    gaps, targets = _Gaps(), _targets(session, version_id)
    for target in targets:
        gaps.known[target.gpu].add(target)
    for engine in found:
        gaps.known[engine.gpu].add(Target(runtime=engine.runtime, gpu=engine.gpu))
    for one in unbuilt(session, version_id):
        gaps.add_unbuilt(one)
    gaps.add_left_out(_left_out(session, version_id), found)
    asked = {
        *(one.precision for one in found),
        *(precision for _, precision in gaps.found),
    }
    precisions = [one for one in Precision if one in asked]
    kept = goals.of_version(session, version_id)
    return Grid(
        precisions=precisions,
        others=[one for one in Precision if one not in asked],
        rows=[
            _row(gpu, found, pulled, kept.get(gpu), targets, gaps, precisions)
            for gpu in sorted(gaps.known, key=_order)
        ],
        is_whole=len(found) <= _MOST_ENGINES,
    )


def _order(gpu: str) -> tuple[bool, str]:
    return gpu != gpus.CPU, gpu


def _targets(session: Session, version_id: int) -> Mapping[Target, Sequence[str]]:
    """What the version's builds want engines for, and the GPUs that they asked for it by."""
    rows = session.execute(
        select(Wanted.target, Wanted.asked)
        .join(Build, Build.id == Wanted.build_id)
        .where(Build.version_id == version_id)
        .distinct()
        .order_by(Wanted.target, Wanted.asked)
    )
    found: defaultdict[Target, list[str]] = defaultdict(list)
    for target, asked in rows:
        found[Target.parse(target)].append(versions.gpu_of(asked))
    return found


def _left_out(session: Session, version_id: int) -> Iterable[tuple[str, LeftOut]]:
    """What the newest builds left out, with their ids, the newest first."""
    rows = session.execute(
        select(Build.id, Build.left_out)
        .where(Build.version_id == version_id, Build.left_out.is_not(None))
        .order_by(Build.id.desc())
        .limit(_MOST_BUILDS)
    )
    for build, entries in rows:
        for entry in entries or ():
            yield build, LeftOut.model_validate(entry)


class _Gaps:
    """What isn't there, by GPU and precision."""

    def __init__(self) -> None:
        self.known: defaultdict[str, set[Target]] = defaultdict(set)
        self.found: defaultdict[tuple[str, Precision], dict[str, Gap]] = defaultdict(dict)

    def add_unbuilt(self, one: Unbuilt) -> None:
        self.known[one.target.gpu].add(one.target)
        self.found[one.target.gpu, one.precision][str(one.target)] = _unbuilt(one)

    def add_left_out(
        self, entries: Iterable[tuple[str, LeftOut]], found: Sequence[EngineView]
    ) -> None:
        there = {(f"{one.runtime}:{one.gpu}", one.precision) for one in found}
        for build, entry in entries:
            gpu = self._row_of(entry.target)
            for precision in entry.precisions:
                if (entry.target, precision) not in there:
                    gap = Gap(
                        missing=Missing.LEFT_OUT, why=entry.why, target=entry.target, build=build
                    )
                    self.found[gpu, precision].setdefault(entry.target, gap)

    def _row_of(self, target: str) -> str:
        """The row that something left out belongs to, which may be as it was requested."""
        runtime, _, asked = target.rpartition(":")
        try:
            gpu = gpus.canonical(asked)
        except UnknownGpu:
            gpu = asked
        if gpu not in self.known and gpus.is_known(gpu):
            capability = gpus.compute_capability(gpu)
            gpu = capability if capability in self.known else gpu
        if runtime in set(Runtime):
            self.known[gpu].add(Target(runtime=Runtime(runtime), gpu=gpu))
        return (self.known.setdefault(gpu, set()) and gpu) or gpu

    def of(self, gpu: str, precision: Precision, there: Collection[Runtime]) -> Sequence[Gap]:
        """Why there is no engine, or with some there, why not of the other runtimes that were asked for."""
        gaps = list(self.found.get((gpu, precision), {}).values())
        return gaps if gaps or there else [self._never(gpu, precision)]

    def _never(self, gpu: str, precision: Precision) -> Gap:
        """What nobody has asked for: could it be built by what makes the GPU's other engines?"""
        if not gpus.is_known(gpu) or not self.known[gpu]:
            return Gap(missing=Missing.NOT_REQUESTED)
        whys = [policy.refusal(one, precision) for one in sorted(self.known[gpu], key=str)]
        refused = [one for one in whys if one is not None]
        if len(refused) < len(whys):
            return Gap(missing=Missing.NOT_REQUESTED)
        return Gap(missing=Missing.REFUSED, why="; ".join(dict.fromkeys(map(str, refused))))


def _unbuilt(one: Unbuilt) -> Gap:
    where = {"target": str(one.target), "build": one.build}
    if one.state in LIVE or one.state is JobState.SUCCEEDED:
        if one.state is JobState.QUEUED:
            return Gap(missing=Missing.QUEUED, job=one.job, queue=one.queue, **where)
        return Gap(missing=Missing.RUNNING, why=str(one.state), job=one.job, **where)
    if one.state is JobState.CANCELLED:
        return Gap(missing=Missing.CANCELLED, job=one.job, **where)
    error = Failure.model_validate(one.error) if one.error else None
    return Gap(
        missing=Missing.FAILED,
        why=error.detail if error else "",
        hint=error.hint if error else None,
        job=one.job,
        **where,
    )


def _row(
    gpu: str,
    found: Sequence[EngineView],
    pulled: Sequence[EngineView],
    goal: Goal | None,
    targets: Mapping[Target, Sequence[str]],
    gaps: _Gaps,
    precisions: Sequence[Precision],
) -> Row:
    mine = [one for one in found if one.gpu == gpu]
    ranked = _ranked(gpu, pulled, goal)
    cells = {}
    for precision in precisions:
        engines = [
            Placed(
                engine=one,
                is_best=ranked is not None and ranked.best.id == one.id,
                why=_why(one, ranked, pulled),
            )
            for one in mine
            if one.precision == precision
        ]
        engines.sort(key=lambda one: not one.is_best)
        there = {one.engine.runtime for one in engines}
        cells[precision] = Cell(engines=engines, gaps=gaps.of(gpu, precision, there))
    asked = {one for target, names in targets.items() if target.gpu == gpu for one in names}
    return Row(
        gpu=gpu,
        asked=sorted(asked - {gpu}),
        cells=cells,
        best=ranked.best if ranked else None,
        why=ranking.reason(ranked) if ranked else _why_none(mine, cells.values()),
    )


def _ranked(gpu: str, pulled: Sequence[EngineView], goal: Goal | None) -> Ranking | None:
    """As a pull ranks them (``farm.registry.match``)."""
    if not gpus.is_known(gpu):
        return None
    good = [one for one in pulled if one.state is EngineState.READY and reach(one, gpu) is not None]
    return ranking.rank(good, gpu, goal or Goal()) if good else None


def _why(engine: EngineView, ranked: Ranking | None, pulled: Sequence[EngineView]) -> str:
    if ranked is not None and ranked.best.id == engine.id:
        return ranking.reason(ranked)
    if engine.state is EngineState.DOUBTFUL:
        return f"it failed a gate: {'; '.join(engine.doubts)}"
    if engine.id not in {one.id for one in pulled}:
        return (
            f"it was yanked: {engine.yanked}" if engine.yanked else "the store has lost its bytes"
        )
    if ranked is None:
        return ""
    if any(one.id == engine.id for one in ranked.chosen_from):
        return ranking.behind(engine, ranked)
    return ranked.passed_over.get(engine.id, "")


def _why_none(mine: Sequence[EngineView], cells: Iterable[Cell]) -> str:
    if any(gap.missing in (Missing.RUNNING, Missing.QUEUED) for cell in cells for gap in cell.gaps):
        return "no engine is finished yet" if not mine else "no engine is good enough yet"
    if not mine:
        return "there are no engines"
    if any(one.state is EngineState.DOUBTFUL for one in mine):
        return "no engine passed its gates"
    return "its engines were yanked, or lost"
