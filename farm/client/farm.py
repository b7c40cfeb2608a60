"""A farm, by its address."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from farm.client import download, sources
from farm.client.build import Build
from farm.client.download import Pulled
from farm.client.http import Backoff, Http
from farm.client.progress import Progress
from farm.client.submission import Files, build_request, data, model_name
from farm.client.upload import is_digest, upload
from farm.errors import InvalidRequest, NotFound
from farm.reports.layers import LayerReport
from farm.schemas.base import Page
from farm.schemas.builds import BuildPage, BuildSummary, BuildView
from farm.schemas.engines import EnginePage, EngineView, Match
from farm.schemas.fleet import TargetView, TimingCacheView, WorkerView
from farm.schemas.keys import AuditEntry, AuditPage, KeyPage, KeyView, NewKey
from farm.schemas.models import ModelDetail, ModelPage, ModelView
from farm.schemas.plugins import PluginView
from farm.schemas.storage import GcReport, ScrubReport
from farm.schemas.submission import BuildRequest
from farm.specs.gates import GateChanges
from farm.specs.options import Prune
from farm.specs.source import SourceFormat

P = TypeVar("P", bound=Page)

DEFAULT_URL = "http://127.0.0.1:8000"
_PAGE = 200
_GC_S = 3600.0
_WORKERS = TypeAdapter(list[WorkerView])
_TARGETS = TypeAdapter(list[TargetView])
_PLUGINS = TypeAdapter(list[PluginView])
_TIMING_CACHES = TypeAdapter(list[TimingCacheView])


class Farm:
    """The farm at ``url``; by default at ``FARM_URL``, else on this machine.

    Parameters:
        key: to the farm; by default `FARM_KEY`, else that of the farm which this user runs on this
            machine.
        timeout: seconds without an answer after which a request is given up.
        backoff: how requests that can be repeated are repeated while the farm is out of reach.
        transport: what carries the requests, for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        timeout: float = 30.0,
        *,
        key: str | None = None,
        backoff: Backoff | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url or os.environ.get("FARM_URL") or DEFAULT_URL
        self.http = Http(
            self.url,
            timeout_s=timeout,
            backoff=backoff or Backoff(),
            key=key,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the farm."""
        self.http.close()

    def submit(
        self,
        source: str | Path,
        *,
        targets: Sequence[str],
        precisions: Sequence[str],
        name: str | None = None,
        format: str | None = None,
        architecture: str | None = None,
        config: Path | Mapping[str, Any] | None = None,
        calibration: str | Path | None = None,
        calibration_method: str = "entropy",
        calibration_batch_size: int = 8,
        evaluation: str | Path | None = None,
        metric: str | None = None,
        max_drop: float | None = None,
        min_agreement: float | None = None,
        max_error: float | None = None,
        profiles: Sequence[Mapping[str, Any]] | None = None,
        fixed_inputs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        prune: str | None = None,
        priority: int = 5,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        progress: Progress | None = None,
    ) -> Build:
        """Ask for a model's engines: every precision for every target.

        Parameters:
            source: an ``.onnx``, ``.pt2``, TorchScript or ``.safetensors`` file, the folder of a
                SavedModel, or the digest of one that the farm has. Files in which an ``.onnx`` keeps
                weights are packed with it.
            name: the model's, by default the file's without its suffix.
            format: ``onnx``, ``pt2``, ``torchscript``, ``savedmodel`` or ``safetensors``; by default what the
                file's name and bytes say, and of a digest the one that it was first submitted with.
            architecture: of safetensors weights: ``LIBRARY:NAME``, as ``transformers:BertModel``.
            config: its configuration, or the path of its ``config.json``.
            calibration, evaluation: ``.npz`` or ``.safetensors`` files, or digests.
            min_agreement, max_error: gates for all precisions instead of the farm's; an engine that fails
                one is published as doubtful.
            profiles: input name → ``{"min": shape, "opt": shape, "max": shape}``.
            fixed_inputs: input name → the one value that it has, which is folded into the graph: a
                number, a truth, or lists of them in the input's shape.
            options: of TensorRT's builder: ``farm.specs.options.BuilderOptions``.
            prune: ``2:4``, or ``l1:0.5`` for half of each layer's weights; not of ONNX.
            idempotency_key: a repeat with the same key returns the first build.

        Raises:
            InvalidRequest: and its kinds; nothing was submitted.
            Unavailable
        """
        files = Files(progress)
        digest, source_kind, model = self._source(files, source, name, format)
        calibrated = None if calibration is None else files.digest(calibration)
        evaluated = None if evaluation is None else files.digest(evaluation)
        if evaluated is None and (metric is not None or max_drop is not None):
            raise InvalidRequest(
                "metric and max_drop need evaluation data", hint="pass evaluation=… (--evaluation)"
            )
        request = build_request(
            model=model,
            source={
                "digest": digest,
                "format": source_kind,
                "architecture": sources.architecture(architecture, config),
            },
            precisions=list(precisions),
            targets=list(targets),
            profiles=list(profiles or ()),
            fixed_inputs=dict(fixed_inputs or {}),
            calibration=data(
                calibrated, method=calibration_method, batch_size=calibration_batch_size
            ),
            evaluation=data(evaluated, metric=metric, max_drop=max_drop),
            options=dict(options or {}),
            gates=GateChanges(agreement=min_agreement, error=max_error)
            if (min_agreement, max_error) != (None, None)
            else None,
            prune=None if prune is None else Prune.parse(prune),
            priority=priority,
            labels=dict(labels or {}),
        )
        for digest, content in files.by_digest.items():
            upload(self.http, content, digest, progress=progress)
        return self._submit(request, idempotency_key)

    def _source(
        self, files: Files, source: str | Path, name: str | None, given: str | None
    ) -> tuple[str, str, str]:
        """The source's digest and format, and the model's name."""
        if not is_digest(str(source)):
            path = Path(source)
            found = sources.find(path, given)
            return files.take(found.content), found.format, name or model_name(path)
        if name is None:
            raise InvalidRequest("a source given by its digest needs a name", hint="pass name=…")
        return str(source), given or self._known_format(str(source), name), name

    def _known_format(self, digest: str, name: str) -> str:
        hint = f"pass format=… (--format): {', '.join(SourceFormat)}"
        try:
            versions = self.model(name).versions
        except NotFound as err:
            raise InvalidRequest(f"the format of {digest} isn't known here", hint=hint) from err
        for version in versions:
            if version.source_digest == digest:
                return version.source_format
        raise InvalidRequest(f"{digest} is no version of {name}: say its format", hint=hint)

    def _submit(self, request: BuildRequest, idempotency_key: str | None) -> Build:
        view = self.http.read(
            BuildView,
            "POST",
            "/v1/builds",
            json=request.model_dump(mode="json"),
            # One key for all attempts of this call: a repeat after a lost answer is harmless.
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )
        return Build(self, view)

    def build(self, build_id: str) -> Build:
        """The build with this id.

        Raises:
            NotFound
        """
        view = self.http.read(BuildView, "GET", f"/v1/builds/{_part(build_id)}")
        return Build(self, view)

    def builds(
        self, *, model: str | None = None, state: str | None = None, limit: int = 50
    ) -> list[BuildSummary]:
        """The newest builds."""
        query = {"model": model, "state": state}
        pages = self._pages(BuildPage, "/v1/builds", query, limit)
        return [item for page in pages for item in page.items]

    def models(self, *, limit: int = 1000) -> list[ModelView]:
        """Models by name."""
        pages = self._pages(ModelPage, "/v1/models", {}, limit)
        return [item for page in pages for item in page.items]

    def model(self, name: str) -> ModelDetail:
        """A model with its versions and its newest version's engines.

        Raises:
            NotFound
        """
        return self.http.read(ModelDetail, "GET", f"/v1/models/{_part(name)}")

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
        """A model's engines, the newest first.

        Parameters:
            prune: ``2:4``, ``l1:0.5``, or ``none`` for those with all weights.

        Raises:
            NotFound, UnknownGpu
        """
        query = {"gpu": gpu, "precision": precision, "runtime": runtime, "version": version}
        query["prune"] = prune
        pages = self._pages(EnginePage, f"/v1/models/{_part(model)}/engines", query, limit)
        return [item for page in pages for item in page.items]

    def engine(self, engine_id: str) -> EngineView:
        """A row of the registry.

        Raises:
            NotFound
        """
        return self.http.read(EngineView, "GET", f"/v1/engines/{_part(engine_id)}")

    def layers(self, engine_id: str) -> LayerReport:
        """What is in an engine: its layers, and in which types it computes.

        Raises:
            NotFound
        """
        return self.http.read(LayerReport, "GET", f"/v1/engines/{_part(engine_id)}/layers")

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
        path = f"/v1/models/{_part(model)}/engines/{_part(gpu)}"
        return self.http.read(Match, "GET", path, params=_given(query))

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
        path = Path(folder) / download.file_name(match.engine)
        fresh = download.download(self.http, match.engine, path, progress=progress)
        return Pulled(path=path, engine=match.engine, why=match.why, fresh=fresh)

    def download_all(
        self, engines: Sequence[EngineView], folder: str | Path, progress: Progress | None = None
    ) -> list[Path]:
        """Download these engines; return their paths in the same order."""
        names = download.file_names(engines)
        paths = [Path(folder) / names[engine.id] for engine in engines]
        for engine, path in zip(engines, paths, strict=True):
            download.download(self.http, engine, path, progress=progress)
        return paths

    def workers(self) -> list[WorkerView]:
        """Every worker that announced itself."""
        return self.http.read(_WORKERS, "GET", "/v1/workers")

    def targets(self) -> list[TargetView]:
        """Every runtime × GPU tag, and whether it can be built."""
        return self.http.read(_TARGETS, "GET", "/v1/targets")

    def timing_caches(self) -> list[TimingCacheView]:
        """What TensorRT's builders have timed, a GPU and toolchain."""
        return self.http.read(_TIMING_CACHES, "GET", "/v1/timing-caches")

    def plugins(self) -> list[PluginView]:
        """The plugin libraries that builds may name."""
        return self.http.read(_PLUGINS, "GET", "/v1/plugins")

    def add_plugin(
        self,
        library: str | Path,
        signature: str,
        *,
        name: str | None = None,
        progress: Progress | None = None,
    ) -> PluginView:
        """Upload a library of TensorRT plugins, and allow-list it.

        Parameters:
            signature: Ed25519, of the library's bytes, by a key that the farm trusts; in base64.
            name: by default the file's.

        Raises:
            PluginRefused, InvalidRequest, DigestMismatch, Unavailable
        """
        files, path = Files(progress), Path(library)
        digest = files.digest(path)
        upload(self.http, path, digest, progress=progress)
        request = {"digest": digest, "name": name or path.name, "signature": signature}
        return self.http.read(PluginView, "POST", "/v1/plugins", json=request)

    def gc(self, *, older_than_s: float = 86400.0, dry_run: bool = False) -> GcReport:
        """Remove from the farm's store what nothing in its database refers to.

        Parameters:
            older_than_s: what was put or asked for since then is kept.
            dry_run: remove nothing, and report what would be removed.

        Raises:
            InvalidRequest, Unavailable
        """
        return self.http.read(
            GcReport,
            "POST",
            "/v1/gc",
            json={"dry_run": dry_run, "older_than_s": older_than_s},
            # It answers when it is done; a repeat would report only what was left to do.
            repeatable=False,
            timeout=_GC_S,
        )

    def scrub(self) -> ScrubReport:
        """Hash every blob of the farm's store, and set aside those that are damaged.

        Raises:
            Unavailable
        """
        return self.http.read(ScrubReport, "POST", "/v1/scrub", repeatable=False, timeout=_GC_S)

    def create_key(
        self, name: str, scopes: Sequence[str], *, expires_in_s: int | None = None
    ) -> NewKey:
        """Make a key. What this returns is the only copy of it.

        Parameters:
            scopes: ``read``, ``submit``, ``promote``, ``admin``.

        Raises:
            KeyNeeded, ScopeMissing, InvalidRequest
        """
        request = {"name": name, "scopes": list(scopes), "expires_in_s": expires_in_s}
        # A repeat would make another.
        return self.http.read(NewKey, "POST", "/v1/keys", json=request, repeatable=False)

    def keys(self, *, limit: int = 1000) -> list[KeyView]:
        """The farm's keys, the newest first, also those that open nothing any more."""
        pages = self._pages(KeyPage, "/v1/keys", {}, limit)
        return [item for page in pages for item in page.items]

    def revoke_key(self, key_id: str) -> KeyView:
        """Let a key open nothing any more.

        Raises:
            NotFound
            Conflict: it is the last one that can make others.
        """
        return self.http.read(KeyView, "DELETE", f"/v1/keys/{_part(key_id)}")

    def audit(
        self, *, key: str | None = None, action: str | None = None, limit: int = 50
    ) -> list[AuditEntry]:
        """Who changed what, the newest first."""
        pages = self._pages(AuditPage, "/v1/audit", {"key": key, "action": action}, limit)
        return [item for page in pages for item in page.items]

    def _pages(
        self, shape: type[P], path: str, query: Mapping[str, Any], limit: int
    ) -> Iterator[P]:
        """The pages that hold the first ``limit`` items."""
        cursor = None
        while limit > 0:
            size = min(limit, _PAGE)
            params = _given({**query, "limit": size, "cursor": cursor})
            page = self.http.read(shape, "GET", path, params=params)
            yield page
            limit, cursor = limit - size, page.cursor
            if cursor is None:
                return


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _part(name: str) -> str:
    """A name as one part of a path: a slash in it doesn't make it two."""
    return quote(name, safe="")
