"""Engine sets: a build's engines, or a version's for all its targets, pulled into one folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from farm.client import file_names
from farm.client.download import Pulled, download
from farm.client.http import Http
from farm.client.noun import Noun
from farm.client.progress import TransferProgress
from farm.client.pulls import OneVersion
from farm.client.registry import Registry
from farm.errors import BlobDamaged, FarmError, NotFound, code_of
from farm.schemas.engines import EngineView, Match
from farm.specs.references import split
from farm.specs.runtime import Runtime, Target
from farm.specs.states import EngineState

_MOST_ENGINES = 100_000  #: of a model, in all its versions


@dataclass(frozen=True, kw_only=True)
class Missing:
    """An engine that a set lacks."""

    target: str
    precision: str | None  #: None if any would have done
    why: str
    engine: str | None = None  #: its id, if there is one
    doubtful: bool = False  #: whether it was left out because it failed a gate


@dataclass(frozen=True, kw_only=True)
class EngineSet:
    """What was pulled, and what is missing."""

    model: str
    version: int
    pulled: list[Pulled]
    missing: list[Missing]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What a set is made of, and what is missing."""

    model: str
    version: int
    matches: list[Match]
    missing: list[Missing]


def left_out(engine: EngineView) -> Missing:
    """A yanked or a doubtful engine, as it is left out of a set."""
    why = f"doubtful: {'; '.join(engine.doubts)}"
    if engine.yanked:
        why = f"yanked: {engine.yanked}; take it all the same by its id: farm pull {engine.id}"
    return Missing(
        target=target_of(engine),
        precision=engine.precision,
        why=why,
        engine=engine.id,
        doubtful=not engine.yanked,
    )


def target_of(engine: EngineView) -> str:
    return str(Target(runtime=engine.runtime, gpu=engine.gpu))


def placed(matches: Sequence[Match], folder: str | Path) -> list[tuple[Match, Path]]:
    """Each match with its file in one folder."""
    names = file_names.file_names([match.engine for match in matches])
    return [(match, Path(folder) / names[match.engine.id]) for match in matches]


def fetch_all(
    http: Http,
    matches: Sequence[Match],
    folder: str | Path,
    progress: TransferProgress | None = None,
) -> tuple[list[Pulled], list[Missing]]:
    """Download engines into one folder; those whose bytes the farm has lost are missing.

    Raises:
        DigestMismatch, Unavailable
    """
    pulled, missing = [], []
    for match, path in placed(matches, folder):
        try:
            pulled.append(download(http, match.engine, path, why=match.why, progress=progress))
        except FarmError as err:
            if not _is_lost(err):
                raise
            missing.append(_lost(match.engine, err))
    return pulled, missing


def _is_lost(err: FarmError) -> bool:
    """Whether the farm has lost the bytes. By its code: with its status it is an Unavailable here."""
    return err.code == code_of(BlobDamaged)


def _lost(engine: EngineView, err: FarmError) -> Missing:
    return Missing(
        target=target_of(engine), precision=engine.precision, why=err.detail, engine=engine.id
    )


class _Sought(NamedTuple):
    """A target of a pull, and its precision if that matters."""

    runtime: Runtime
    gpu: str
    precision: str | None


class Sets(Noun):
    """Pulls for more than one target."""

    def pull_all_targets(
        self,
        model: str,
        folder: str | Path = ".",
        *,
        precisions: Sequence[str] = (),
        runtime: str | None = None,
        version: int | None = None,
        prune: str | None = None,
        doubtful: bool = False,
        for_triton: str | None = None,
        progress: TransferProgress | None = None,
    ) -> EngineSet:
        """Download one version's best engine for each target that it has engines for.

        The version is the one that a pull takes: the given one, else ``prod``, else the newest complete.

        Parameters:
            model: its name, or ``digits@7`` or ``digits@prod``.
            precisions: the best in each of these, instead of the best of all.
            doubtful: accept engines that failed a gate where no other matches.
            for_triton: only what this release of Triton loads.

        Raises:
            NotFound: the model doesn't exist, or no target has such an engine.
            DigestMismatch, Unavailable
        """
        found = self.match_all_targets(
            model,
            precisions=precisions,
            runtime=runtime,
            version=version,
            prune=prune,
            doubtful=doubtful,
            for_triton=for_triton,
        )
        return self.fetch_all_targets(found, folder, progress=progress)

    def fetch_all_targets(
        self,
        found: Matched,
        folder: str | Path = ".",
        *,
        progress: TransferProgress | None = None,
    ) -> EngineSet:
        """Download what ``match_all_targets`` has found.

        Raises:
            DigestMismatch, Unavailable
        """
        pulled, lost = fetch_all(self.http, found.matches, folder, progress)
        return EngineSet(
            model=found.model, version=found.version, pulled=pulled, missing=found.missing + lost
        )

    def match_all_targets(
        self,
        model: str,
        *,
        precisions: Sequence[str] = (),
        runtime: str | None = None,
        version: int | None = None,
        prune: str | None = None,
        doubtful: bool = False,
        for_triton: str | None = None,
    ) -> Matched:
        """What ``pull_all_targets`` would download.

        Raises:
            NotFound: the model doesn't exist, or no target has such an engine.
        """
        name = split(model, version)[0]
        there = self._there(name, precisions, {"runtime": runtime, "prune": prune})
        of = OneVersion(self.http, model, version)
        matches: dict[str, Match] = {}
        errors: dict[_Sought, FarmError] = {}
        for one in there:
            answer = _match(of, one, prune=prune, doubtful=doubtful, for_triton=for_triton)
            if isinstance(answer, FarmError):
                errors[one] = answer
            else:
                matches[answer.engine.id] = answer
        number = of.number
        if number is None:
            raise next(iter(errors.values()))
        missing = list(_unmatched(there, errors, number))
        return Matched(model=name, version=number, matches=list(matches.values()), missing=missing)

    def _there(
        self, model: str, precisions: Sequence[str], among: Mapping[str, Any]
    ) -> dict[_Sought, list[EngineView]]:
        """The targets that a model has engines for, of any version.

        Raises:
            NotFound: there is none.
        """
        there: dict[_Sought, list[EngineView]] = {}
        for precision in precisions or (None,):
            engines = Registry(self.http).engines(
                model, precision=precision, limit=_MOST_ENGINES, **among
            )
            for engine in engines:
                sought = _Sought(engine.runtime, engine.gpu, precision)
                there.setdefault(sought, []).append(engine)
        if not there:
            raise NotFound(f"{model} has no such engine", hint=f"`farm engines {model}` lists them")
        return there


def _match(of: OneVersion, sought: _Sought, **asked: Any) -> Match | FarmError:
    """The best engine for it, or why there is none."""
    runtime, gpu, precision = sought
    try:
        return of.match(gpu, runtime=runtime, precision=precision, **asked)
    except FarmError as err:
        if not isinstance(err, NotFound) and not _is_lost(err):
            raise
        return err


def _unmatched(
    there: Mapping[_Sought, Sequence[EngineView]], errors: Mapping[_Sought, FarmError], version: int
) -> Iterator[Missing]:
    """The targets that the version has engines for, of which none is pulled."""
    for sought, error in errors.items():
        engines = [engine for engine in there[sought] if engine.version == version]
        target = str(Target(runtime=sought.runtime, gpu=sought.gpu))
        if engines and all(_is_only_doubtful(engine) for engine in engines):
            yield replace(left_out(engines[0]), precision=sought.precision)
        elif engines:
            yield Missing(target=target, precision=sought.precision, why=error.detail)


def _is_only_doubtful(engine: EngineView) -> bool:
    return engine.state is EngineState.DOUBTFUL and not engine.yanked
