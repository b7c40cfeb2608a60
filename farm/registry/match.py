"""Selects the engine that a pull returns, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Version
from farm.errors import BlobDamaged, NotFound
from farm.registry import goals, names, ranking, triton_fit, versions
from farm.registry.catalog import UNPRUNED, find
from farm.registry.names import Named
from farm.registry.ranking import Ranking
from farm.registry.twins import beside_twins
from farm.registry.versions import Taken
from farm.schemas.engines import EngineView, Match, PassedOver
from farm.specs import gpus
from farm.specs.goals import Goal
from farm.specs.machines import ANY, Machine, misfit
from farm.specs.reach import Reach, reach
from farm.specs.references import Reference
from farm.specs.states import EngineState


def best_match(
    session: Session,
    model: str,
    gpu: str,
    *,
    precision: str | None = None,
    runtime: str | None = None,
    version: int | None = None,
    alias: str | None = None,
    prune: str | None = None,
    doubtful: bool = False,
    explain: bool = False,
    machine: Machine = ANY,
    for_triton: str | None = None,
) -> Match:
    """The best engine of a model for a GPU.

    Of one version, whatever the GPU (``registry.versions.taken``), and of that what can run on the machine.
    ``registry.ranking.rank`` chooses among these, by the goal kept for the version and GPU, or else by
    latency.

    Parameters:
        doubtful: also consider engines that failed a gate, after those that didn't.
        explain: also list the version's other engines for the GPU, and why not.
        machine: what is known of the one that asks.
        for_triton: consider only engines that this release of Triton loads.

    Raises:
        NotFound: names what exists.
        NameAmbiguous, UnknownGpu, InvalidRequest
    """
    tag = gpus.canonical(gpu)
    known = names.named(session, model)
    of = versions.taken(session, known, Reference(version=version, alias=alias))
    asked: dict[str, Any] = {
        "precision": precision,
        "runtime": runtime,
        "prune": prune,
    }
    matching = partial(find, session, known, gpu=tag, version=of.number, **asked)
    whole = [
        one
        for one in matching(only_whole=True, yanked=False, limit=1000)
        if reach(one, tag) is not None
    ]
    found = [one for one in whole if misfit(one, machine) is None]
    if whole and not found:
        raise _none_fits(whole[0], tag, machine)
    if not found:
        for one in matching(only_whole=True, limit=1):
            raise NotFound(
                f"engine {one.id} of {known.name} for {tag} was yanked: {one.yanked}",
                hint=f"build the model again, or take it all the same by its id: farm pull {one.id}",
            )
        for lost in matching(limit=1):
            raise BlobDamaged(f"the store has lost the bytes of engine {lost.id} of {known.name}")
    good = [one for one in found if doubtful or one.state is EngineState.READY]
    if found and not good:
        raise _only_doubtful(found[0], tag)
    if not good:
        raise _nothing(session, known, tag, of, **asked)
    misfits = triton_fit.misfits(good, for_triton)
    fitting = [one for one in good if one.id not in misfits]
    if not fitting and for_triton is not None:
        raise triton_fit.nothing(good, misfits, for_triton, tag)
    kept = goals.kept(session, known.id, of.number, tag)
    ranked = ranking.rank(fitting, tag, kept or Goal(), by_precision=precision is not None)
    [compared] = beside_twins(session, [ranked.best])
    passed_over = None
    if explain:
        others = find(session, known, gpu=tag, version=of.number, limit=1000)
        passed_over = list(_passed_over(others, found, ranked, asked, tag, machine, misfits))
    return Match(engine=compared, why=_why(ranked, kept, tag, of, **asked), passed_over=passed_over)


def _passed_over(
    others: Sequence[EngineView],
    found: Sequence[EngineView],
    ranked: Ranking,
    asked: Mapping[str, Any],
    tag: str,
    machine: Machine,
    misfits: Mapping[str, str],
) -> Iterator[PassedOver]:
    """The engines that aren't the best match, and why.

    Parameters:
        found: what was asked for, doubtful ones included.
        misfits: of those, what Triton doesn't load, and why.
    """
    behind = {one.id: ranking.behind(one, ranked) for one in ranked.chosen_from}
    behind.update({**ranked.passed_over, **misfits})
    doubtful = {one.id for one in found} - behind.keys()
    for one in others:
        if one.id != ranked.best.id:
            why = (
                behind.get(one.id)
                or _why_unfit(one, tag, machine)
                or _why_not(one, asked, is_doubtful=one.id in doubtful)
            )
            yield PassedOver(
                engine=one.id, precision=one.precision, runtime=one.runtime, gpu=one.gpu, why=why
            )


def _why_unfit(one: EngineView, tag: str, machine: Machine) -> str | None:
    """Why it can't run on the machine; None if it can."""
    if reach(one, tag) is None:
        return f"it was built for {one.gpu} on a processor of another architecture"
    return misfit(one, machine)


def _why_not(one: EngineView, asked: Mapping[str, Any], *, is_doubtful: bool) -> str:
    """Why an engine wasn't ranked."""
    if is_doubtful:
        return f"it failed a gate: {'; '.join(one.doubts)}"
    for name in ("precision", "runtime", "prune"):
        if asked[name] and asked[name] != (getattr(one, name) or UNPRUNED):
            return f"{name} {asked[name]} was asked for"
    if one.yanked:
        return f"it was yanked: {one.yanked}"
    return "the store has lost its bytes"


def _why(
    ranked: Ranking,
    kept: Goal | None,
    tag: str,
    of: Taken,
    *,
    precision: str | None,
    runtime: str | None,
    prune: str | None,
) -> str:
    best = ranked.best
    reasons = [
        _FITS[reach(best, tag) or Reach.EXACT].format(tag=tag, gpu=best.gpu),
        of.why,
        f"{best.precision} as requested" if precision else "",
        ranking.reason(ranked) if ranked.compared or not precision else "",
        f"{best.runtime} as requested" if runtime else f"runtime {best.runtime}",
    ]
    if kept and (ranked.compared or not precision):
        reasons.insert(2, f"the goal kept for {tag} is {kept}")
    if best.prune and prune:
        reasons.append(f"pruned {best.prune} as requested")
    elif best.prune:
        reasons.append(f"pruned {best.prune}: version {best.version} has no unpruned one")
    if best.yanked:
        reasons.append(f"yanked: {best.yanked}")
    if best.doubts:
        reasons.append(f"doubtful, as requested: {'; '.join(best.doubts)}")
    return "; ".join(filter(None, reasons))


_FITS = {
    Reach.EXACT: "built for {tag}",
    Reach.CAPABILITY: "built for {gpu}, the compute capability of {tag}",
    Reach.PORTABLE: "built on {gpu} to run on {tag} too, which costs speed",
}


def _none_fits(engine: EngineView, tag: str, machine: Machine) -> NotFound:
    return NotFound(
        f"{engine.model} has no engine for {tag} that runs on the machine: "
        f"{engine.precision} of version {engine.version} by {engine.runtime}: {misfit(engine, machine)}",
        hint="install that there, or build the model again with what the machine has; to pull it for "
        f"another machine, name its GPU and no --has: farm pull {engine.model} --gpu {tag}",
    )


def _only_doubtful(engine: EngineView, tag: str) -> NotFound:
    """The error for a pull that finds only doubtful engines."""
    return NotFound(
        f"{engine.model} has no engine for {tag} that passed its gates; {engine.precision} of version "
        f"{engine.version} is doubtful: {'; '.join(engine.doubts)}",
        hint="accept it with --doubtful (doubtful=true), or submit the model again with your own data, "
        "another precision, or other gates",
    )


def _nothing(
    session: Session,
    model: Named,
    tag: str,
    of: Taken,
    *,
    precision: str | None,
    runtime: str | None,
    prune: str | None,
) -> NotFound:
    pruned = prune and ("unpruned" if prune == UNPRUNED else f"pruned {prune}")
    wanted = " ".join(filter(None, (pruned, precision, runtime)))
    there = sorted(
        {
            f"{one.precision}@{one.gpu} ({one.runtime}{f', pruned {one.prune}' * bool(one.prune)})"
            for one in find(session, model, version=of.number, limit=1000)
        }
    )
    exists = f"there is {', '.join(there)}" if there else "it has no engines yet"
    asked: dict[str, Any] = {"precision": precision, "runtime": runtime, "prune": prune}
    good = {
        one.version
        for one in find(session, model, gpu=tag, only_whole=True, yanked=False, limit=1000, **asked)
        if one.state is EngineState.READY and reach(one, tag) is not None
    } - {of.number}
    other = f", or pull version {max(good)}: --version {max(good)}" if good else ""
    what = f"{wanted} engine" if wanted else "engine"
    return NotFound(
        f"version {of.number} of {model.name} has no {what} for {tag}; {exists}",
        hint=f"{of.why}; build it for {tag}: "
        f"{_build_it(session, model, of.number, tag, precision)}{other}",
    )


def _build_it(session: Session, model: Named, number: int, tag: str, precision: str | None) -> str:
    """The command that builds a version for one more GPU: the farm has its source."""
    source = session.scalar(
        select(Version.source_digest).where(Version.model_id == model.id, Version.number == number)
    )
    wanted = f" --precision {precision}" if precision else ""
    elsewhere = f"farm pull {model.name} --onnx{wanted} has its ONNX for elsewhere"
    return f"farm submit {source} --name {model.name} --gpu {tag}{wanted}; {elsewhere}"
