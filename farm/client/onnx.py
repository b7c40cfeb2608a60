"""A version's ONNX, to build an engine from where the farm has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from farm.client import file_names
from farm.client.asked import check_is
from farm.client.content import Content, bring
from farm.client.noun import Noun, given, part
from farm.client.progress import TransferProgress
from farm.schemas.onnx import OnnxFile
from farm.specs import references


@dataclass(frozen=True, kw_only=True)
class PulledOnnx:
    """An ONNX file on this machine."""

    path: Path
    onnx: OnnxFile
    fresh: bool  #: False if the same bytes were already here


class Onnx(Noun):
    """Downloads ONNX files."""

    def pull_onnx(
        self,
        model: str,
        folder: str | Path = ".",
        *,
        precision: str | None = None,
        version: int | None = None,
        progress: TransferProgress | None = None,
    ) -> PulledOnnx:
        """Download the ONNX of the version that a pull takes, and verify it.

        Parameters:
            model: its name, or ``digits@7`` or ``digits@prod``.
            precision: in whose types; by default as it was exported.

        Raises:
            NotFound: the farm has none.
            DigestMismatch, Unavailable
        """
        model, of = references.split(model, version)
        query = given({"precision": precision, "version": of.version, "alias": of.alias})
        where = f"/v1/models/{part(model)}/onnx"
        found = self.http.read(OnnxFile, "GET", where, params=query)
        asked = {"model": model, "precision": precision, "version": of.version}
        check_is(found, given(asked), "an ONNX file")
        # It isn't signed, and mustn't take the place of an engine that is.
        typed = f"-{found.precision}" if found.precision else ""
        named = {"file_name": f"{found.model}-v{found.version}{typed}.onnx"}
        check_is(found, named, "an ONNX file")
        # Of this version, even if another is promoted meanwhile.
        query = given({"precision": precision, "version": found.version})
        path = Path(folder) / file_names.checked(found.file_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = Content(
            path=f"{where}/content?{urlencode(query)}",
            what=found.file_name,
            digest=found.digest,
            bytes=found.bytes,
        )
        fresh = bring(self.http, content, path, progress)
        return PulledOnnx(path=path, onnx=found, fresh=fresh)
