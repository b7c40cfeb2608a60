"""The registry: models, their versions and their engines."""

from __future__ import annotations

from farm.client.aliases import Aliases
from farm.client.noun import part
from farm.reports.layers import LayerReport
from farm.schemas.engines import EnginePage, EngineView
from farm.schemas.models import ModelDetail, ModelPage, ModelView


class Registry(Aliases):
    """Models and engines in the registry."""

    def models(self, *, limit: int = 1000) -> list[ModelView]:
        """Models by name."""
        pages = self._pages(ModelPage, "/v1/models", {}, limit)
        return [item for page in pages for item in page.items]

    def model(self, name: str) -> ModelDetail:
        """A model with its versions and its newest version's engines.

        Raises:
            NotFound
        """
        return self.http.read(ModelDetail, "GET", f"/v1/models/{part(name)}")

    def engines(
        self,
        model: str,
        *,
        gpu: str | None = None,
        precision: str | None = None,
        runtime: str | None = None,
        version: int | None = None,
        prune: str | None = None,
        limit: int = 1000,
    ) -> list[EngineView]:
        """A model's engines, newest first.

        Parameters:
            model: its name, or ``digits@7`` or ``digits@prod`` for one version.
            prune: ``2:4``, ``l1:0.5``, or ``none`` for unpruned engines.

        Raises:
            NotFound, UnknownGpu
        """
        model, version = self.version_of(model, version)
        query = {"gpu": gpu, "precision": precision, "runtime": runtime, "version": version}
        query["prune"] = prune
        pages = self._pages(EnginePage, f"/v1/models/{part(model)}/engines", query, limit)
        return [item for page in pages for item in page.items]

    def engine(self, engine_id: str) -> EngineView:
        """An engine's registry entry.

        Raises:
            NotFound
        """
        return self.http.read(EngineView, "GET", f"/v1/engines/{part(engine_id)}")

    def layers(self, engine_id: str) -> LayerReport:
        """An engine's layers, and the types it computes in.

        Raises:
            NotFound
        """
        return self.http.read(LayerReport, "GET", f"/v1/engines/{part(engine_id)}/layers")
