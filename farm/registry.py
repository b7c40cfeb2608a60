"""The registry: engines by model and GPU tag, published when they are built and checked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Select, String, and_, bindparam, cast, func, or_, select
from sqlalchemy.orm import Session, aliased

from farm import judgements, latencies, ranking
from farm.database.ids import new_id
from farm.database.tables import Artifact, Build, EngineRow, Job, Model, Version, Wanted
from farm.errors import BlobDamaged, NotFound
from farm.planning import keys, parameters
from farm.reports import extent
from farm.reports import facts as reports
from farm.schemas.engines import Comparison, EngineView, Match
from farm.specs import gpus
from farm.specs.options import Prune
from farm.specs.precision import CALIBRATED, QUANTIZED, Precision
from farm.specs.runtime import Target
from farm.specs.states import EngineState, JobState

#: Of what a build says of its engine, what is kept in the row.
_IO = "inputs outputs differences profiles compute options timing_cache peak_memory_bytes".split()
_BUILT, _MEASURED = aliased(Job), aliased(Job)
# Made once: every build and measure job that succeeds asks.
_COMPLETE = (
    select(
        Wanted,
        Build.version_id,
        Build.request,
        EngineRow.id.label("engine_id"),
        _BUILT.outputs,
        _BUILT.facts,
        _BUILT.toolchain,
        _MEASURED.facts.label("report"),
    )
    .join(Build, Build.id == Wanted.build_id)
    .join(_BUILT, _BUILT.id == Wanted.build_job_id)
    .join(_MEASURED, _MEASURED.id == Wanted.measure_job_id)
    .outerjoin(
        EngineRow,
        and_(
            EngineRow.version_id == Build.version_id,
            EngineRow.build_job_id == Wanted.build_job_id,
            EngineRow.measure_job_id == Wanted.measure_job_id,
        ),
    )
    .where(
        Wanted.engine_id.is_(None),
        _BUILT.state == JobState.SUCCEEDED,
        _MEASURED.state == JobState.SUCCEEDED,
    )
)
_COMPLETE_BY_JOB = _COMPLETE.where(
    or_(Wanted.build_job_id == bindparam("job_id"), Wanted.measure_job_id == bindparam("job_id"))
)
_COMPLETE_OF_BUILD = _COMPLETE.where(Wanted.build_id == bindparam("build_id"))


def publish(session: Session, job_id: int) -> None:
    """Enter the engines into the registry that are complete now that this job has succeeded."""
    _publish(session, session.execute(_COMPLETE_BY_JOB, {"job_id": job_id}).all())


def publish_build(session: Session, build_id: str) -> Sequence[Wanted]:
    """Enter the engines into the registry that a new build finds complete; return all that it wants."""
    _publish(session, session.execute(_COMPLETE_OF_BUILD, {"build_id": build_id}).all())
    return session.scalars(select(Wanted).where(Wanted.build_id == build_id)).all()


def _publish(session: Session, complete: Sequence[Any]) -> None:
    # Several builds may want one engine.
    published: dict[tuple[int, int, int], str] = {}
    for found in complete:
        want = found.Wanted
        same = (found.version_id, want.build_job_id, want.measure_job_id)
        if same not in published:
            published[same] = found.engine_id or _engine(session, found)
        want.engine_id = published[same]
    session.flush()


def doubts(session: Session, wanted: Sequence[Wanted]) -> dict[str, list[str]]:
    """Engine id → why it is doubtful, of those of these engines that are."""
    ids = [want.engine_id for want in wanted if want.engine_id]
    if not ids:
        return {}
    rows = session.execute(
        select(EngineRow.id, EngineRow.doubts).where(
            EngineRow.id.in_(ids), EngineRow.state == EngineState.DOUBTFUL
        )
    )
    return {
        engine_id: [one for one in told if isinstance(one, str)] if isinstance(told, list) else []
        for engine_id, told in rows
    }


#: By which judgements of one engine are told from other engines; of older rows it is the build job.
_SAME = func.coalesce(EngineRow.io["same"].as_string(), cast(EngineRow.build_job_id, String))


def count_engines() -> ColumnElement[int]:
    """How many engines there are, however often each was judged."""
    return func.count(_SAME.distinct())


def _same(found: Any) -> str:
    """What two engines have in common that differ at most by the data that their model was run on.

    Other samples are no reason to call an engine another: they judge it, and show which of its values
    leave the range of a type. Data that it was calibrated with are.
    """
    facts, request = found.facts, found.request
    calibrated = found.Wanted.precision in CALIBRATED
    recipe = {
        "target": found.Wanted.target,
        "precision": found.Wanted.precision,
        "runtime_version": facts["runtime_version"],
        "toolchain": found.toolchain,
        "stages": {kind.value: version for kind, version in keys.STAGE_VERSIONS.items()},
        "prune": request.get("prune"),
        "fixed_inputs": request.get("fixed_inputs"),
        "architecture": request["source"].get("architecture"),
        "calibration": request.get("calibration") if calibrated else None,
        "profiles": facts.get("profiles"),
        "options": facts.get("options"),
    }
    return keys.key(recipe)


def _engine(session: Session, found: Any) -> str:
    want, facts, report = found.Wanted, found.facts, found.report
    target = Target.parse(want.target)
    prune = found.request.get("prune")
    row = EngineRow(
        id=new_id(),
        version_id=found.version_id,
        runtime=target.runtime,
        runtime_version=facts["runtime_version"],
        gpu=target.gpu,
        precision=want.precision,
        prune=str(Prune.model_validate(prune)) if prune else None,
        digest=found.outputs["engine"],
        accuracy=report["accuracy"],
        metrics=report["metrics"],
        metrics_reason=report["metrics_reason"],
        state=EngineState.DOUBTFUL if report.get("doubts") else EngineState.READY,
        doubts=report.get("doubts"),
        io={name: facts.get(name) for name in _IO} | {"same": _same(found)},
        toolchain=found.toolchain,
        build_id=want.build_id,
        build_job_id=want.build_job_id,
        measure_job_id=want.measure_job_id,
    )
    session.add(row)
    session.flush()
    return row.id


def _rows() -> Select[*tuple[Any, ...]]:
    return (
        select(
            EngineRow,
            Model.name,
            Version.number,
            Version.source_digest,
            Version.fixed_inputs,
            Artifact.bytes,
        )
        .join(Version, Version.id == EngineRow.version_id)
        .join(Model, Model.id == Version.model_id)
        .join(Artifact, Artifact.digest == EngineRow.digest)
    )


def _view(row: Any) -> EngineView:
    engine = row[0]
    recorded = {name: getattr(engine, name) for name in _RECORDED}
    if reports.is_readable(recorded["accuracy"], recorded["metrics"]) and extent.fits(engine.io):
        try:
            return _shown(row, **recorded, doubts=engine.doubts or [], **engine.io)
        except (ValidationError, TypeError):
            pass
    # An earlier farm took whatever a stage's process sent. One row mustn't keep others from being shown.
    return _shown(row, **_UNREADABLE)


def _shown(row: Any, **recorded: Any) -> EngineView:
    engine, model, version, source_digest, fixed_inputs, size = row
    columns = {name: getattr(engine, name) for name in _COLUMNS}
    return EngineView(
        **columns,
        **recorded,
        model=model,
        version=version,
        source_digest=source_digest,
        fixed_inputs=fixed_inputs or {},
        bytes=size,
        build=engine.build_id,
    )


_COLUMNS = "id runtime runtime_version gpu precision prune digest toolchain created_at".split()
#: What its stages have said of it.
_RECORDED = "accuracy metrics metrics_reason state".split()
_UNREADABLE: Mapping[str, Any] = {
    "accuracy": {},
    "metrics": None,
    "metrics_reason": "what was recorded of it can't be read",
    "state": EngineState.DOUBTFUL,
    "doubts": ["what was recorded of it can't be read: no stage of the farm writes so"],
    "profiles": [],
    "inputs": [],
    "outputs": [],
}


#: What a quantised engine is compared with, the first that there is.
_WIDER = (Precision.FP16, Precision.FP32)


def _compared(session: Session, views: Sequence[EngineView]) -> list[EngineView]:
    """The same engines; those that are compressed beside their newest twins that aren't so.

    Of a pruned one that is the unpruned one of its precision, of a quantised one a wider one.
    """
    ids = [view.id for view in views if _twin_precisions(view)]
    versions = select(EngineRow.version_id).where(EngineRow.id.in_(ids))
    unpruned = _rows().where(EngineRow.version_id.in_(versions), EngineRow.prune.is_(None))
    twins = {
        (_twin_key(view), view.precision): view
        for view in reversed(_grouped(session.execute(unpruned)) if ids else [])
    }
    return [
        view.model_copy(update={"against": _against(view, twins)}) if view.id in ids else view
        for view in views
    ]


def _twin_precisions(view: EngineView) -> Sequence[Precision]:
    if view.prune:
        return (view.precision,)
    return _WIDER if view.precision in QUANTIZED else ()


def _twin_key(view: EngineView) -> tuple[Any, ...]:
    options = view.options
    if view.prune and options:
        # The plan sets it for weights that were pruned for it: it is a part of the pruning.
        options = options.model_copy(update={"sparse_weights": False})
    return view.model, view.version, view.runtime, view.gpu, str((view.profiles, options))


def _against(
    view: EngineView, twins: Mapping[tuple[Any, Precision], EngineView]
) -> Comparison | None:
    for precision in _twin_precisions(view):
        twin = twins.get((_twin_key(view), precision))
        if twin is not None:
            latency_ratio, no_latency = latencies.ratio(view.metrics, twin.metrics)
            return Comparison(
                engine=twin.id,
                precision=precision,
                size_ratio=round(view.bytes / twin.bytes, 4),
                latency_ratio=latency_ratio,
                latency_reason=no_latency,
                task_drop=_drop(view, twin, "task", "engine") if _same_task(view, twin) else None,
                agreement_drop=_drop(view, twin, "top1_agreement")
                if _same_data(view, twin)
                else None,
            )
    return None


def _same_data(view: EngineView, twin: EngineView) -> bool:
    """Whether two judgements are of data of the same kind and number."""
    return all(view.accuracy.get(name) == twin.accuracy.get(name) for name in ("data", "samples"))


def _same_task(view: EngineView, twin: EngineView) -> bool:
    """Whether the source has the same result in both judgements, as it has on the same labels."""
    source = _at(view.accuracy, "task", "source")
    return source is not None and source == _at(twin.accuracy, "task", "source")


def _drop(view: EngineView, twin: EngineView, *path: str) -> float | None:
    value, other = _at(view.accuracy, *path), _at(twin.accuracy, *path)
    return None if value is None or other is None else round(other - value, 4)


def _at(document: Any, *path: str) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document


def engine(session: Session, engine_id: str) -> EngineView:
    """One row of the registry, with the other judgements of its engine.

    Raises:
        NotFound
    """
    row = session.get(EngineRow, engine_id)
    if row is None:
        raise NotFound(f"there is no engine {engine_id!r}", hint="`farm engines MODEL` lists them")
    same = _rows().where(EngineRow.version_id == row.version_id, _SAME.in_([_identity(row)]))
    views = [_view(one) for one in session.execute(same)]
    [asked] = [view for view in views if view.id == engine_id]
    [compared] = _compared(session, [judgements.beneath(asked, views)])
    return compared


def _identity(row: EngineRow) -> str:
    return row.io.get("same") or str(row.build_job_id)


def _grouped(rows: Iterable[Any]) -> list[EngineView]:
    """One view an engine, its other judgements beneath; that which was published last first."""
    groups: defaultdict[tuple[int, str], list[EngineView]] = defaultdict(list)
    for row in rows:
        groups[row[0].version_id, _identity(row[0])].append(_view(row))
    newest = sorted(groups.values(), key=lambda views: min(v.id for v in views), reverse=True)
    ranked = [judgements.ranked(views) for views in newest]
    return [judgements.beneath(best, rest) for best, *rest in ranked]


def layers(session: Session, engine_id: str) -> str:
    """The digest of an engine's layer report.

    Raises:
        NotFound
    """
    outputs = session.scalar(
        select(Job.outputs)
        .join(EngineRow, EngineRow.build_job_id == Job.id)
        .where(EngineRow.id == engine_id)
    )
    if outputs is None:
        raise NotFound(f"there is no engine {engine_id!r}", hint="`farm engines MODEL` lists them")
    if "layers" not in outputs:
        raise NotFound(f"engine {engine_id!r} was built without a layer report")
    return outputs["layers"]


def provenance(session: Session, engine_id: str) -> dict[str, Any]:
    """Where an engine came from: the jobs that built and measured it, with all that their keys cover."""
    row = session.get_one(EngineRow, engine_id)
    jobs = {"build": row.build_job_id, "measure": row.measure_job_id}
    found = {name: session.get_one(Job, job_id) for name, job_id in jobs.items()}
    return {
        name: {
            "job": job.id,
            "key": job.key,
            "recipe": parameters.whole(session, job.recipe),
            "worker": job.owner,
        }
        for name, job in found.items()
    }


def engines(
    session: Session,
    model: str,
    *,
    gpu: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    version: int | None = None,
    prune: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[EngineView]:
    """A model's engines, that which was published last first.

    An engine that was judged again is told once, by its best founded judgement.

    Parameters:
        before: the id of a row, whose engine was published after those that are asked for.
        prune: ``2:4``, ``l1:0.5``, or ``none`` for those with all weights.

    Raises:
        NotFound: there is no such model.
        UnknownGpu, InvalidRequest
    """
    found = _engines(
        session,
        model,
        gpu=gpu,
        precision=precision,
        runtime=runtime,
        version=version,
        prune=prune,
        before=before,
        limit=limit,
    )
    return _compared(session, found)


def _engines(
    session: Session,
    model: str,
    *,
    gpu: str | None = None,
    precision: str | None = None,
    runtime: str | None = None,
    version: int | None = None,
    prune: str | None = None,
    before: str | None = None,
    only_whole: bool = False,
    limit: int,
) -> list[EngineView]:
    """Engines, the newest first.

    Parameters:
        only_whole: leave out those whose bytes the store has lost.
    """
    model_id(session, model)
    statement = (
        select(EngineRow.id, EngineRow.version_id, _SAME.label("same"))
        .join(Version, Version.id == EngineRow.version_id)
        .join(Model, Model.id == Version.model_id)
        .where(Model.name == model)
    )
    if gpu is not None:
        tag = gpus.canonical(gpu)
        statement = statement.where(EngineRow.gpu.in_({tag, gpus.compute_capability(tag)}))
    if precision is not None:
        statement = statement.where(EngineRow.precision == precision)
    if runtime is not None:
        statement = statement.where(EngineRow.runtime == runtime)
    if version is not None:
        statement = statement.where(Version.number == version)
    if prune is not None:
        wanted = None if prune == UNPRUNED else str(Prune.parse(prune))
        statement = statement.where(EngineRow.prune.is_not_distinct_from(wanted))
    row = statement.subquery()
    first = func.min(row.c.id)
    groups = select(row.c.version_id, row.c.same).group_by(row.c.version_id, row.c.same)
    if before is not None:
        groups = groups.having(first < _published(session, before))
    page = groups.order_by(first.desc()).limit(limit).subquery()
    same = and_(page.c.version_id == EngineRow.version_id, page.c.same == _SAME)
    rows = _rows().join(page, same)
    if only_whole:
        rows = rows.where(Artifact.lost_at.is_(None))
    return _grouped(session.execute(rows))


def _published(session: Session, engine_id: str) -> str:
    """The id of the first row of an engine, of which this is one."""
    row = session.get(EngineRow, engine_id)
    if row is None:
        return engine_id
    same = select(func.min(EngineRow.id)).where(
        EngineRow.version_id == row.version_id, _SAME.in_([_identity(row)])
    )
    return session.scalar(same) or engine_id


def model_id(session: Session, name: str) -> int:
    """A model's id.

    Raises:
        NotFound: with the names that are there.
    """
    found = session.scalar(select(Model.id).where(Model.name == name))
    if found is None:
        names = ", ".join(session.scalars(select(Model.name).order_by(Model.name).limit(10)))
        raise NotFound(
            f"there is no model {name!r}",
            hint=f"the models are {names}" if names else "submit one: farm submit MODEL_FILE",
        )
    return found


UNPRUNED = "none"


def match(
    session: Session,
    model: str,
    gpu: str,
    *,
    precision: str | None = None,
    runtime: str | None = None,
    version: int | None = None,
    prune: str | None = None,
    doubtful: bool = False,
) -> Match:
    """The best engine of a model for a GPU: the newest version, one with all weights before a pruned
    one, the exact product before its compute capability, the asked precision or else the fastest, where
    that was measured, or else the smallest; the newest build.

    Parameters:
        doubtful: take one that failed a gate, too, after those that didn't.

    Raises:
        NotFound: naming what exists.
        UnknownGpu, InvalidRequest
    """
    tag = gpus.canonical(gpu)
    asked: dict[str, Any] = {
        "precision": precision,
        "runtime": runtime,
        "version": version,
        "prune": prune,
    }
    found = _engines(session, model, gpu=tag, **asked, only_whole=True, limit=1000)
    if not found:
        for lost in _engines(session, model, gpu=tag, **asked, limit=1):
            raise BlobDamaged(f"the store has lost the bytes of engine {lost.id} of {model}")
    good = [one for one in found if doubtful or one.state is EngineState.READY]
    if found and not good:
        raise _only_doubtful(found[0], tag)
    if not good:
        raise NotFound(*_nothing(session, model, tag, **asked))
    best, chosen_from = ranking.best(good, tag, by_precision=precision is not None)
    [compared] = _compared(session, [best])
    return Match(engine=compared, why=_why(best, chosen_from, tag, **asked))


def _why(
    best: EngineView,
    chosen_from: Sequence[EngineView],
    tag: str,
    *,
    precision: str | None,
    runtime: str | None,
    version: int | None,
    prune: str | None,
) -> str:
    fits = (
        f"built for {tag}"
        if best.gpu == tag
        else f"built for {best.gpu}, the compute capability of {tag}"
    )
    reasons = [
        fits,
        f"version {best.version} as asked"
        if version
        else f"version {best.version} is the newest with one",
        f"{best.precision} as asked" if precision else ranking.reason(best, chosen_from),
        f"{best.runtime} as asked" if runtime else f"runtime {best.runtime}",
    ]
    if best.prune and prune:
        reasons.append(f"pruned {best.prune} as asked")
    elif best.prune:
        reasons.append(
            f"pruned {best.prune}: there is no such engine of version {best.version} unpruned"
        )
    if best.doubts:
        reasons.append(f"doubtful, as asked: {'; '.join(best.doubts)}")
    return "; ".join(reasons)


def _only_doubtful(engine: EngineView, tag: str) -> NotFound:
    """Why a pull doesn't take what there is."""
    return NotFound(
        f"{engine.model} has no engine for {tag} that passed its gates; {engine.precision} of version "
        f"{engine.version} is doubtful: {'; '.join(engine.doubts)}",
        hint="take it all the same with --doubtful (doubtful=true), or submit the model again with data "
        "of its own, another precision, or other gates",
    )


def _nothing(
    session: Session,
    model: str,
    tag: str,
    *,
    precision: str | None,
    runtime: str | None,
    version: int | None,
    prune: str | None,
) -> tuple[str]:
    pruned = prune and ("unpruned" if prune == UNPRUNED else f"pruned {prune}")
    parts = (pruned, precision, runtime, version and f"version {version}")
    asked = " ".join(str(part) for part in parts if part)
    there = sorted(
        {
            f"{e.precision}@{e.gpu} ({e.runtime}, v{e.version}{f', pruned {e.prune}' * bool(e.prune)})"
            for e in _engines(session, model, limit=1000)
        }
    )
    exists = f"there is {', '.join(there)}" if there else "it has no engines yet"
    return (f"{model} has no {asked + ' ' if asked else ''}engine for {tag}; {exists}",)
