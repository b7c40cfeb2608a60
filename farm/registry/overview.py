"""A model at a glance: what each of its versions has for which GPU, and how far ``prod`` is behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import IS_KEPT, Build, EngineRow, Version, Wanted
from farm.registry import compare, interfaces, models, names, versions
from farm.registry.names import Named
from farm.registry.rows import YANKED, with_yanks
from farm.schemas.aliases import Beside
from farm.schemas.models import Behind, Cell, MatrixRow, ModelDetail, Verdict, VersionView
from farm.specs.precision import Precision
from farm.specs.references import PROD
from farm.specs.states import BUILD_ENDED, EngineState

#: Of a model's versions these are shown in detail, and those with an alias.
_NEWEST = 20
_MOST_BUILDING = 5
_MOST_ALIASED = 20
_VERDICTS = tuple(Verdict)


def overview(session: Session, model: str, *, also: int | None = None) -> ModelDetail:
    """A model with its matrix and what ``prod`` lacks.

    Parameters:
        also: a version to show in detail even if it is an old one.

    Raises:
        NotFound, NameAmbiguous
    """
    known = names.named(session, model)
    found = models.model(session, known.name)
    detailed = {*_detailed(found), also}
    rows = session.scalars(
        select(Version).where(Version.model_id == known.id, Version.number.in_(detailed), IS_KEPT)
    )
    by_number = {row.number: row for row in rows}
    return found.model_copy(
        update={
            "versions": [
                _in_detail(session, one, by_number[one.version])
                if one.version in by_number
                else one
                for one in found.versions
            ],
            "detailed": sorted(by_number),
            "matrix": matrix(session, {row.id: row.number for row in by_number.values()}),
            "prod_lacks": _behind(session, known, found),
        }
    )


def _detailed(found: ModelDetail) -> Collection[int]:
    newest = [one.version for one in found.versions[-_NEWEST:]]
    return {*newest, *(one.version for one in found.aliases[:_MOST_ALIASED])}


def _in_detail(session: Session, view: VersionView, row: Version) -> VersionView:
    complete = versions.is_complete(session, row.id)
    return view.model_copy(
        update={
            "interface": interfaces.of(row),
            "complete": complete,
            "missing": [
                *_building(session, row.id),
                *([] if complete else _missing(session, row.id)),
            ],
        }
    )


def _building(session: Session, version_id: int) -> list[str]:
    """Its builds that haven't ended: also what is complete may have engines that wait."""
    rows = session.execute(
        select(Build.id, Build.state)
        .where(Build.version_id == version_id, Build.state.not_in(BUILD_ENDED))
        .order_by(Build.id.desc())
        .limit(_MOST_BUILDING)
    )
    return [f"build {build.id} is {build.state}" for build in rows]


def _missing(session: Session, version_id: int) -> list[str]:
    """What its newest build lacks, by GPU, if that has ended."""
    build = session.execute(
        select(Build.id, Build.state)
        .where(Build.version_id == version_id)
        .order_by(Build.id.desc())
        .limit(1)
    ).one_or_none()
    if build is None:
        return ["it has no build"]
    if build.state not in BUILD_ENDED:
        return []
    rows = session.execute(
        with_yanks(
            select(Wanted.asked, Wanted.precision, EngineRow.state, YANKED)
            .outerjoin(EngineRow, EngineRow.id == Wanted.engine_id)
            .where(Wanted.build_id == build.id)
            .order_by(Wanted.asked, Wanted.precision)
        )
    )
    lacks: dict[str, list[str]] = defaultdict(list)
    served = set()
    for asked, precision, state, yanked in rows:
        gpu = versions.gpu_of(asked)
        if state == EngineState.READY and yanked is None:
            served.add(gpu)
        else:
            why = "yanked" if yanked is not None else state or f"build {build.id} {build.state}"
            lacks[gpu].append(f"{precision} {why}")
    return [f"{gpu}: {', '.join(why)}" for gpu, why in lacks.items() if gpu not in served]


def matrix(session: Session, numbers: dict[int, int]) -> list[MatrixRow]:
    """What versions have, by GPU and precision.

    Parameters:
        numbers: the versions' ids and numbers.
    """
    found = session.execute(
        with_yanks(
            select(
                EngineRow.id,
                EngineRow.version_id,
                EngineRow.gpu,
                EngineRow.precision,
                EngineRow.state,
                YANKED,
            )
            .where(EngineRow.version_id.in_(numbers))
            .order_by(EngineRow.id.desc())
        )
    )
    cells: defaultdict[tuple[str, str], dict[int, dict[Verdict, list[str]]]]
    cells = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for engine, version_id, gpu, precision, state, yanked in found:
        verdict = _verdict(state, yanked)
        cells[gpu, precision][numbers[version_id]][verdict].append(engine)
    return [
        MatrixRow(
            gpu=gpu,
            precision=Precision(precision),
            cells=[
                Cell(version=number, verdict=best, engines=by_verdict[best])
                for number, by_verdict in sorted(by_version.items())
                for best in [min(by_verdict, key=_VERDICTS.index)]
            ],
        )
        for (gpu, precision), by_version in sorted(cells.items())
    ]


def _verdict(state: str, yanked: str | None) -> Verdict:
    if yanked is not None:
        return Verdict.YANKED
    return Verdict.PASSED if state == EngineState.READY else Verdict.DOUBTFUL


def _behind(session: Session, model: Named, found: ModelDetail) -> Behind | None:
    """What ``prod`` lacks beside the newest version that may be pulled and has an engine that passed."""
    prod = next((one.version for one in found.aliases if one.alias == PROD), None)
    newest = next(
        (
            one.version
            for one in reversed(found.versions)
            if one.engines and one.yanked is None and not one.held_back
        ),
        None,
    )
    if prod is None or newest is None or newest <= prod:
        return None
    ids = {versions.version_id(session, model, number): number for number in (prod, newest)}
    rows = matrix(session, ids)
    mine, its = (
        [f"{row.gpu} {row.precision}" for row in rows if _passed(row.cells, number)]
        for number in (prod, newest)
    )
    return Behind(
        version=prod,
        newest=newest,
        targets=[target for target in its if target not in mine],
        better=list(_better(session, model, prod, newest)),
    )


def _passed(cells: Sequence[Cell], number: int) -> bool:
    return any(one.version == number and one.verdict is Verdict.PASSED for one in cells)


def _better(session: Session, model: Named, prod: int, newest: int) -> Iterable[Beside]:
    served = compare.gpus(session, model, newest)
    for gpu in compare.gpus(session, model, prod):
        if gpu not in served:
            continue
        old, new = (compare.engine(session, model, gpu, number) for number in (prod, newest))
        if old is not None and new is not None:
            one = compare.beside(session, gpu, new, old)
            if (one.latency_ratio or 1.0) < 1 or (one.task_drop or 0.0) < 0:
                yield one
