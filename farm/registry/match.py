"""Selects the engine that a pull returns, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.database.tables import Version
from farm.errors import BlobDamaged, NotFound
from farm.registry import fits, goals, names, ranking, signed_aliases, versions
from farm.registry.catalog import UNPRUNED, completed, find
from farm.registry.fits import Where
from farm.registry.names import Named
from farm.registry.ranking import Ranking
from farm.registry.versions import Taken
from farm.schemas.engines import EngineView, Match, PassedOver
from farm.specs import gpus
from farm.specs.goals import Goal
from farm.specs.reach import Reach, reach
from farm.specs.references import PROD, Reference
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
    where: Where = Where(),
) -> Match:
    """The best engine of a model for a GPU.

    Of one version, whatever the GPU (``registry.versions.taken``), and of that what can run there.
    ``registry.ranking.rank`` chooses among these, by the goal kept for the version and GPU, or else by
    latency.

    Parameters:
        doubtful: also consider engines that failed a gate, after those that didn't.
        explain: also list the version's other engines for the GPU, and why not.
        where: consider only engines that run there.

    Raises:
        NotFound: names what exists.
        NameAmbiguous, UnknownGpu, InvalidRequest
    """
    tag = gpus.canonical(gpu)
    known = names.named(session, model)
    of = versions.taken(session, known, Reference(version=version, alias=alias))
    asked: dict[str, Any] = {"precision": precision, "runtime": runtime, "prune": prune}

    def there(**only: Any) -> list[EngineView]:
        found = find(session, known, gpu=tag, version=of.number, limit=1000, **only, **asked)
        return [one for one in found if reach(one, tag) is not None]

    found = there(only_whole=True, yanked=False)
    good = _good(found, where, tag, doubtful=doubtful)
    if not good:
        _check_gone(there, known, tag)
        raise _nothing(session, known, tag, of, **asked)
    kept = goals.kept(session, known.id, of.number, tag)
    ranked = ranking.rank(good, tag, kept or Goal(), by_precision=precision is not None)
    [best] = completed(session, [ranked.best])
    passed_over = None
    if explain:
        others = find(session, known, gpu=tag, version=of.number, limit=1000)
        misfits = fits.misfits(others, where)
        passed_over = list(_passed_over(others, found, ranked, asked, tag, misfits))
    why = _why(ranked, kept, tag, of, precision=precision, prune=prune)
    statement = None
    if version is None:
        statement = signed_aliases.bundle_of(session, known, alias or PROD)
    return Match(engine=best, why=why, passed_over=passed_over, statement=statement)


def _good(
    found: Sequence[EngineView], where: Where, tag: str, *, doubtful: bool
) -> list[EngineView]:
    """Those that run where they are to, and passed their gates if they must.

    Raises:
        NotFound: there are engines, and none is left.
    """
    misfits = fits.misfits(found, where)
    fitting = [one for one in found if one.id not in misfits]
    if found and not fitting:
        raise fits.nothing(found, misfits, where, tag)
    good = [one for one in fitting if doubtful or one.state is EngineState.READY]
    if fitting and not good:
        raise _only_doubtful(fitting[0], tag)
    return good


def _check_gone(there: Callable[..., Sequence[EngineView]], model: Named, tag: str) -> None:
    """Raise what became of the engines asked for, if there were any: yanked, or lost."""
    for one in there(only_whole=True):
        raise NotFound(
            f"engine {one.id} of {model.name} for {tag} was yanked: {one.yanked}",
            hint=f"build the model again, or take it all the same by its id: farm pull {one.id}",
        )
    for lost in there():
        raise BlobDamaged(f"the store has lost the bytes of engine {lost.id} of {model.name}")


def _passed_over(
    others: Sequence[EngineView],
    found: Sequence[EngineView],
    ranked: Ranking,
    asked: Mapping[str, Any],
    tag: str,
    misfits: Mapping[str, str],
) -> Iterator[PassedOver]:
    """The engines that aren't the best match, and why.

    Parameters:
        found: what was asked for, doubtful ones included.
        misfits: what can't run where it is to, and why.
    """
    behind = {one.id: ranking.behind(one, ranked) for one in ranked.chosen_from}
    behind.update({**ranked.passed_over, **misfits})
    doubtful = {one.id for one in found} - behind.keys()
    for one in others:
        if one.id != ranked.best.id:
            why = (
                _why_elsewhere(one, tag)
                or behind.get(one.id)
                or _why_not(one, asked, is_doubtful=one.id in doubtful)
            )
            yield PassedOver(
                engine=one.id, precision=one.precision, runtime=one.runtime, gpu=one.gpu, why=why
            )


def _why_elsewhere(one: EngineView, tag: str) -> str | None:
    """Why it isn't for the GPU after all; None if it is."""
    if reach(one, tag) is None:
        return f"it was built for {one.gpu} on a processor of another architecture"
    return None


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
    prune: str | None,
) -> str:
    best = ranked.best
    reasons = [
        _REACHES[reach(best, tag) or Reach.EXACT].format(tag=tag, gpu=best.gpu),
        of.why,
        f"{best.precision} as requested" if precision else "",
        ranking.reason(ranked) if ranked.compared or not precision else "",
        f"runtime {best.runtime}",
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


_REACHES = {
    Reach.EXACT: "built for {tag}",
    Reach.CAPABILITY: "built for {gpu}, the compute capability of {tag}",
    Reach.PORTABLE: "built on {gpu} to run on {tag} too, which costs speed",
}


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
