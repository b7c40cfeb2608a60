"""Builds, by id and newest first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from farm.client.build import Build
from farm.client.noun import Noun, part
from farm.client.progress import TransferProgress
from farm.client.sets import EngineSet
from farm.schemas.builds import BuildPage, BuildSummary, BuildView


class Builds(Noun):
    """The farm's builds."""

    def build(self, build_id: str) -> Build:
        """The build with this id.

        Parameters:
            build_id: its first characters suffice if no other id begins with them; ``last`` is the newest
                build: of this key, where keys are required.

        Raises:
            NotFound, IdAmbiguous
        """
        view = self.http.read(BuildView, "GET", f"/v1/builds/{part(build_id)}")
        return Build(self.http, view)

    def pull_build(
        self,
        build_id: str,
        folder: str | Path = ".",
        *,
        doubtful: bool = False,
        progress: TransferProgress | None = None,
    ) -> EngineSet:
        """Download every engine of a build that isn't yanked; say which are missing, and why.

        Parameters:
            doubtful: include engines that failed a gate.

        Raises:
            NotFound: there is no such build.
            Conflict: it isn't done yet.
            DigestMismatch, Unavailable
        """
        return self.build(build_id).pull_all(folder, doubtful=doubtful, progress=progress)

    def builds(
        self,
        *,
        model: str | None = None,
        state: str | None = None,
        labels: Sequence[str] = (),
        limit: int = 50,
    ) -> list[BuildSummary]:
        """The newest builds.

        Parameters:
            labels: only with these: ``team=vision``, or ``team`` for any value.
        """
        query = {"model": model, "state": state, "label": list(labels) or None}
        pages = self._pages(BuildPage, "/v1/builds", query, limit)
        return [item for page in pages for item in page.items]
