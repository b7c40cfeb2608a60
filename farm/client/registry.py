"""The registry: models, their versions and their engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from farm.client.aliases import Aliases
from farm.client.noun import given, part
from farm.client.submission import checked
from farm.reports.layers import LayerReport
from farm.reports.quantization import Quantization
from farm.schemas.compare import Compared
from farm.schemas.engines import EnginePage, EngineView
from farm.schemas.labels import DescriptionChanges
from farm.schemas.models import ModelDetail, ModelPage, ModelView
from farm.schemas.yanks import YankRequest


class Registry(Aliases):
    """Models and engines in the registry."""

    def models(self, *, labels: Sequence[str] = (), limit: int = 1000) -> list[ModelView]:
        """Models by name.

        Parameters:
            labels: only with these, themselves or a version of theirs: ``team=vision``, or ``team`` for any
                value.
        """
        query = {"label": list(labels) or None}
        pages = self._pages(ModelPage, "/v1/models", query, limit)
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

    def compare(self, model: str, a: str | int, b: str | int) -> Compared:
        """Two versions of a model beside each other, by GPU.

        Parameters:
            a, b: versions' numbers, or aliases.

        Raises:
            NotFound, InvalidRequest
        """
        path = f"/v1/models/{part(model)}/compare"
        return self.http.read(Compared, "GET", path, params={"a": str(a), "b": str(b)})

    def describe(
        self,
        model: str,
        labels: Mapping[str, str | None] | None = None,
        *,
        note: str | None = None,
    ) -> ModelDetail:
        """Change the labels and the note of a version, or of a model.

        Parameters:
            model: ``digits@7`` or ``digits@prod`` for a version, ``digits`` for the model.
            labels: to set; None as a value removes one.
            note: in place of the one before; an empty one removes it.

        Raises:
            NotFound, InvalidRequest, ScopeMissing
        """
        name, version = self.version_of(model)
        fields = given({"labels": labels, "note": note})
        body = checked(DescriptionChanges, **fields).model_dump(mode="json", exclude_unset=True)
        path = f"/v1/models/{part(name)}"
        path = path if version is None else f"{path}/versions/{version}"
        return self.http.read(ModelDetail, "PATCH", path, json=body)

    def yank(self, model: str, version: int, reason: str) -> ModelDetail:
        """Have no pull take a version unless it asks for it by its number.

        Raises:
            NotFound, InvalidRequest, ScopeMissing
        """
        body = checked(YankRequest, reason=reason).model_dump()
        return self.http.read(ModelDetail, "POST", _yank(model, version), json=body)

    def unyank(self, model: str, version: int) -> ModelDetail:
        """Have pulls take a version again.

        Raises:
            NotFound, ScopeMissing
        """
        return self.http.read(ModelDetail, "DELETE", _yank(model, version))

    def yank_engine(self, engine_id: str, reason: str) -> EngineView:
        """Have no pull take an engine.

        Raises:
            NotFound, InvalidRequest, ScopeMissing
        """
        body = checked(YankRequest, reason=reason).model_dump()
        path = f"/v1/engines/{part(engine_id)}/yank"
        return self.http.read(EngineView, "POST", path, json=body)

    def unyank_engine(self, engine_id: str) -> EngineView:
        """Have pulls take an engine again.

        Raises:
            NotFound, ScopeMissing
        """
        return self.http.read(EngineView, "DELETE", f"/v1/engines/{part(engine_id)}/yank")

    def engine(self, engine_id: str) -> EngineView:
        """An engine's registry entry.

        Parameters:
            engine_id: its first characters suffice if no other id begins with them.

        Raises:
            NotFound, IdAmbiguous
        """
        return self.http.read(EngineView, "GET", f"/v1/engines/{part(engine_id)}")

    def layers(self, engine_id: str) -> LayerReport:
        """An engine's layers, and the types it computes in.

        Raises:
            NotFound
        """
        return self.http.read(LayerReport, "GET", f"/v1/engines/{part(engine_id)}/layers")

    def quantization(self, engine_id: str) -> Quantization:
        """What calibration made of a quantised engine's graph.

        Raises:
            NotFound: it isn't quantised.
        """
        return self.http.read(Quantization, "GET", f"/v1/engines/{part(engine_id)}/quantization")

    def quantization_picture(self, engine_id: str, tensor: str | None = None) -> bytes:
        """An SVG of the same.

        Parameters:
            tensor: only this tensor's histogram, with its ranges.

        Raises:
            NotFound: it isn't quantised, or the tensor has no histogram.
        """
        path = f"/v1/engines/{part(engine_id)}/quantization/picture.svg"
        return self.http.request("GET", path, params=given({"tensor": tensor})).content


def _yank(model: str, version: int) -> str:
    return f"/v1/models/{part(model)}/versions/{version}/yank"
