"""Builds, by id and newest first."""

from __future__ import annotations

from farm.client.build import Build
from farm.client.noun import Noun, part
from farm.schemas.builds import BuildPage, BuildSummary, BuildView


class Builds(Noun):
    """The farm's builds."""

    def build(self, build_id: str) -> Build:
        """The build with this id.

        Raises:
            NotFound
        """
        view = self.http.read(BuildView, "GET", f"/v1/builds/{part(build_id)}")
        return Build(self.http, view)

    def builds(
        self, *, model: str | None = None, state: str | None = None, limit: int = 50
    ) -> list[BuildSummary]:
        """The newest builds."""
        query = {"model": model, "state": state}
        pages = self._pages(BuildPage, "/v1/builds", query, limit)
        return [item for page in pages for item in page.items]
