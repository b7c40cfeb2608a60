"""Engines for this machine: which one is the best, and its download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from farm.client import file_names
from farm.client.download import Pulled, download
from farm.client.noun import Noun, given, part
from farm.client.progress import Progress
from farm.schemas.engines import EngineView, Match


class Pulls(Noun):
    """What is downloaded from the farm."""

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
    ) -> Match:
        """The best engine of a model for a GPU tag, and why it is the best.

        A pruned one only where it is asked for, or there is no other of its version.

        Parameters:
            doubtful: take one that failed a gate, where there is no good one.

        Raises:
            NotFound: naming what exists.
            UnknownGpu
        """
        query = {"precision": precision, "runtime": runtime, "version": version, "prune": prune}
        query |= {"doubtful": doubtful or None}
        path = f"/v1/models/{part(model)}/engines/{part(gpu)}"
        return self.http.read(Match, "GET", path, params=given(query))

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
        progress: Progress | None = None,
    ) -> Pulled:
        """Download the best engine of a model for a GPU tag, verified.

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
        )
        return self.fetch(match, folder, progress=progress)

    def fetch(
        self, match: Match, folder: str | Path = ".", *, progress: Progress | None = None
    ) -> Pulled:
        """Download a match, verified.

        Raises:
            DigestMismatch, Unavailable
        """
        path = Path(folder) / file_names.file_name(match.engine)
        fresh = download(self.http, match.engine, path, progress=progress)
        return Pulled(path=path, engine=match.engine, why=match.why, fresh=fresh)

    def download_all(
        self, engines: Sequence[EngineView], folder: str | Path, progress: Progress | None = None
    ) -> list[Path]:
        """Download these engines; return their paths in the same order."""
        names = file_names.file_names(engines)
        paths = [Path(folder) / names[engine.id] for engine in engines]
        for engine, path in zip(engines, paths, strict=True):
            download(self.http, engine, path, progress=progress)
        return paths
