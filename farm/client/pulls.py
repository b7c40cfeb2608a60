"""Engines for this machine: finding the best, and downloading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from farm.client import file_names
from farm.client.asked import check_is
from farm.client.download import Pulled, download
from farm.client.http import Http
from farm.client.noun import Noun, given, part
from farm.client.progress import TransferProgress
from farm.errors import NotFound
from farm.schemas.engines import EngineView, Match
from farm.schemas.signing import SigningKeyView
from farm.signing.keys import PublicKey
from farm.specs import references
from farm.specs.machines import ANY, Machine
from farm.specs.states import EngineState


class Pulls(Noun):
    """Matches and downloads engines."""

    def match(
        self,
        model: str,
        gpu: str,
        *,
        precision: str | None = None,
        runtime: str | None = None,
        version: int | None = None,
        prune: str | None = None,
        doubtful: bool = False,
        explain: bool = False,
        has: Machine = ANY,
        for_triton: str | None = None,
    ) -> Match:
        """A model's best engine for a GPU tag, and why it was chosen.

        Pruned engines are returned only if requested, or if the version has no other.

        Parameters:
            model: its name; ``digits@7`` and ``digits@prod`` are its version 7, and the one with that alias.
                By default the one that ``prod`` names, else the newest complete one, whatever the GPU.
            doubtful: accept one that failed a gate if no other matches.
            explain: also list the version's other engines for the GPU, and why not.
            has: what is known of the machine that is to run it. ``farm.client.here()`` is this one.
            for_triton: only what this release of Triton loads: ``25.10``.

        Raises:
            NotFound: naming what exists.
            UnknownGpu
            DigestMismatch: the farm answers with another engine than it was asked for.
            SignatureRefused: the farm has signed another version of the alias, or this one is an older one
                than this user has seen.
            InvalidRequest: the farm doesn't know this release of Triton.
        """
        model, of = references.split(model, version)
        query: dict[str, Any] = {"precision": precision, "runtime": runtime, "prune": prune}
        query |= {"version": of.version, "alias": of.alias}
        query |= {
            "doubtful": doubtful or None,
            "explain": explain or None,
            "has": has.facts() or None,
        }
        query |= {"for_triton": for_triton}
        path = f"/v1/models/{part(model)}/engines/{part(gpu)}"
        found = self.http.read(Match, "GET", path, params=given(query))
        asked = {"model": model, "version": of.version, "precision": precision, "runtime": runtime}
        check_is(found.engine, given(asked))
        if of.version is None:
            self.http.seen.check(found, self.http.trust, model, of.alias or references.PROD)
        return found

    def pull(
        self,
        model: str,
        gpu: str,
        folder: str | Path = ".",
        *,
        precision: str | None = None,
        runtime: str | None = None,
        version: int | None = None,
        prune: str | None = None,
        doubtful: bool = False,
        has: Machine = ANY,
        progress: TransferProgress | None = None,
    ) -> Pulled:
        """Download a model's best engine for a GPU tag and verify it.

        Parameters: as of ``match``.

        Raises:
            NotFound, UnknownGpu, DigestMismatch, Unavailable
        """
        match = self.match(
            model,
            gpu,
            precision=precision,
            runtime=runtime,
            version=version,
            prune=prune,
            doubtful=doubtful,
            has=has,
        )
        return self.fetch(match, folder, progress=progress)

    def fetch(
        self, match: Match, folder: str | Path = ".", *, progress: TransferProgress | None = None
    ) -> Pulled:
        """Download a match and verify it.

        Raises:
            DigestMismatch, Unavailable
        """
        path = Path(folder) / file_names.file_name(match.engine)
        return download(self.http, match.engine, path, why=match.why, progress=progress)

    def signing_keys(self) -> list[SigningKeyView]:
        """The keys that the farm signs with, or has signed with, newest first. None if it doesn't sign."""
        return self.http.signing_keys()

    def trust_signing_key(self, key: str | Path | None) -> list[PublicKey]:
        """Believe that this is the farm's signing key, instead of what was known of it before.

        Parameters:
            key: its file, or the fingerprint of one that the farm shows; None forgets the farm.

        Returns:
            What is known now: this key, and those of the farm's that it answers for.

        Raises:
            InvalidRequest, SignatureRefused
        """
        if key is None:
            self.http.seen.forget()
        return self.http.trust.pin(None if key is None else str(key))

    def pull_engine(
        self,
        engine_id: str,
        folder: str | Path = ".",
        *,
        doubtful: bool = False,
        progress: TransferProgress | None = None,
    ) -> Pulled:
        """Download exactly this engine and verify it, whatever GPU it is for, and even if it was yanked.

        Parameters:
            doubtful: accept it if it failed a gate.

        Raises:
            NotFound: there is no such engine, or it is doubtful.
            DigestMismatch, Unavailable
        """
        return self.fetch(self.match_by_id(engine_id, doubtful=doubtful), folder, progress=progress)

    def match_by_id(self, engine_id: str, *, doubtful: bool = False) -> Match:
        """Exactly this engine, whatever GPU it is for, and even if it was yanked.

        Parameters:
            doubtful: accept it if it failed a gate.

        Raises:
            NotFound: there is no such engine, or it is doubtful.
        """
        engine = self.http.read(EngineView, "GET", f"/v1/engines/{part(engine_id)}")
        if not engine_id or not engine.id.startswith(engine_id.lower()):
            check_is(engine, {"id": engine_id})
        if engine.state is EngineState.DOUBTFUL and not doubtful:
            raise NotFound(
                f"engine {engine.id} ({engine.precision} of {engine.model} v{engine.version} for "
                f"{engine.runtime}:{engine.gpu}) is doubtful: {'; '.join(engine.doubts)}",
                hint="accept it with --doubtful (doubtful=True), or submit the model again with your own "
                "data, another precision, or other gates",
            )
        why = "requested by its id"
        if engine.yanked:
            why += f"; yanked: {engine.yanked}"
        if engine.doubts:
            why += f"; doubtful, as requested: {'; '.join(engine.doubts)}"
        return Match(engine=engine, why=why)


class OneVersion:
    """Matches of one version: that of the first one, even if another is promoted meanwhile.

    Parameters:
        model: ``digits``, ``digits@prod``, ``digits@7``.
    """

    def __init__(self, http: Http, model: str, version: int | None = None) -> None:
        self._pulls = Pulls(http)
        self._model, self._asked = model, version
        self._name = references.split(model, version)[0]
        self.number: int | None = None  #: None before the first match

    def match(self, gpu: str, **asked: Any) -> Match:
        """The version's best engine, as ``Pulls.match`` finds it.

        It asks as the user did, so that the reason says which version a pull takes.

        Raises:
            as ``Pulls.match``
        """
        try:
            found = self._pulls.match(self._model, gpu, version=self._asked, **asked)
        except NotFound:
            if self.number is None:
                raise
            found = None
        if found is None or self.number not in (None, found.engine.version):
            found = self._pulls.match(self._name, gpu, version=self.number, **asked)
            why = f"of version {self.number}, like those before it"
            found = found.model_copy(update={"why": why})
        self.number = found.engine.version
        return found
