"""Keeps a model of a Triton repository at an alias: the old version goes once the new one is loaded.

Files in use are never changed: a version has its folder, in it an engine has a file named by its id, and
``config.pbtxt`` names both. In folders and buckets the order is: the new version's files, ``config.pbtxt``,
the load, and then the old version goes. If the load fails, ``config.pbtxt`` is put back first, and then the
new version's files go. So no Triton, told to load or polling, sees a config that names what isn't all there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from farm.client.buckets import Bucket, is_bucket
from farm.client.file_names import checked
from farm.client.http import Http
from farm.client.noun import Noun
from farm.client.progress import TransferProgress
from farm.client.pulls import OneVersion
from farm.client.repositories import Folder, Kept, KeptModel
from farm.client.triton_server import TritonServer
from farm.errors import InvalidRequest, TritonLoadFailed
from farm.registry import triton
from farm.registry.triton import Model
from farm.schemas.engines import Match
from farm.specs.triton import Backend

#: The config that Triton has loaded from this repository, by its digest.
_LOADED = ".farm-loaded"
#: A version's folder, or one that was never finished.
_FOLDER = re.compile(r"(\d{1,18})|\.\d{1,18}\.partial", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a repository is to serve.

    Parameters:
        model: ``digits@prod``; without a reference, the version that pulls take.
        gpus: the GPUs that Triton serves on; several need TensorRT plans.
        for_triton: only engines that this release loads.
        doubtful: accept engines that failed a gate where no other matches.
    """

    model: str
    gpus: Sequence[str]
    precision: str | None = None
    runtime: str | None = None
    backend: Backend | None = None
    for_triton: str | None = None
    doubtful: bool = False


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What a repository serves after a look at the farm."""

    name: str
    version: int
    before: int | None  #: the version that was served before; None if there was none
    engines: list[str]
    changed: bool
    loaded: bool  #: whether Triton was told to load it, and serves it now
    removed: list[str]  #: what went from the model's folder, by name
    why: str
    notes: tuple[str, ...]


class Sync:
    """A repository, kept at what the farm says.

    Parameters:
        repository: a folder, or a bucket's URL, for Triton's ``--model-repository``; other models in it are
            left alone.
        server: told to load what has changed. Without one the version before stays until the next change,
            for a Triton that polls.

    Raises:
        InvalidRequest: the bucket's URL.
        ExtraMissing: for buckets.
    """

    def __init__(
        self, http: Http, wish: Wish, repository: str | Path, server: TritonServer | None = None
    ) -> None:
        self._http = http
        self._wish = wish
        self._repository: Kept = (
            Bucket(str(repository)) if is_bucket(repository) else Folder(Path(repository))
        )
        self._server = server

    def wanted(self) -> tuple[Model, list[Match]]:
        """The model that the repository is to hold now.

        Raises:
            NotFound, UnknownGpu, Unavailable
            InvalidRequest: the engines can't be one model of Triton.
        """
        wish = self._wish
        of = OneVersion(self._http, wish.model)
        matches = [
            of.match(
                gpu,
                precision=wish.precision,
                runtime=wish.runtime,
                doubtful=wish.doubtful,
                for_triton=wish.for_triton,
            )
            for gpu in wish.gpus
        ]
        return self._one_model(matches), matches

    def once(
        self,
        wanted: tuple[Model, list[Match]] | None = None,
        *,
        progress: TransferProgress | None = None,
    ) -> Synced:
        """Bring the repository, and Triton, to what the farm says now.

        Parameters:
            wanted: what ``wanted`` said a moment ago.

        Raises:
            TritonLoadFailed: with Triton's reason; the repository and the server are as before.
            Conflict: the repository has a model that ``farm sync`` and ``farm pull`` haven't made.
            NotFound, UnknownGpu, InvalidRequest, DigestMismatch, Unavailable
        """
        model, matches = wanted or self.wanted()
        why = {match.engine.id: match.why for match in matches}
        with self._repository.model(checked(model.name)) as kept:
            before = _config(kept)
            changed = before != model.config or not _is_whole(kept, model)
            if changed:
                kept.place(self._http, model, why=why, progress=progress)
                kept.write(triton.CONFIG, model.config.encode())
            loaded = False
            if self._server is not None:
                loaded = self._load(self._server, kept, model, before)
                removed = _tidy(kept, model)
            else:
                removed = _tidy(kept, model, also=_version(before)) if changed else []
        return Synced(
            name=model.name,
            version=model.version,
            before=_version(before),
            engines=[one.id for one in model.engines.values()],
            changed=changed,
            loaded=loaded,
            removed=removed,
            why=matches[0].why,
            notes=model.notes,
        )

    def _one_model(self, matches: Sequence[Match]) -> Model:
        engines = list({one.engine.id: one.engine for one in matches}.values())
        if len(engines) == 1:
            return triton.model(engines[0], backend=self._wish.backend)
        models, left_out = triton.models(engines, backend=self._wish.backend)
        if left_out:
            raise left_out[0][1]
        if len(models) > 1:
            found = ", ".join(f"{one.precision} by {one.runtime} for {one.gpu}" for one in engines)
            raise InvalidRequest(
                f"one model of Triton can't serve all of these: {found}",
                hint="several GPUs share a model by TensorRT plans of one interface, one a compute "
                "capability (--runtime tensorrt); else keep a repository for each GPU",
            )
        return models[0]

    def _load(
        self, server: TritonServer, kept: KeptModel, model: Model, before: str | None
    ) -> bool:
        """Have the server load the model, unless it serves exactly this already; return whether it had to.

        Raises:
            TritonLoadFailed: the repository is as it was before.
            Unavailable: it isn't known whether the server loaded it; nothing is removed.
        """
        digest = hashlib.sha256(model.config.encode()).hexdigest().encode()
        if kept.read(_LOADED) == digest and server.is_ready(model.name, model.version):
            return False
        try:
            server.load(model.name, model.version)
        except TritonLoadFailed:
            if before != model.config:
                _put_back(kept, model, before)
            raise
        kept.write(_LOADED, digest)
        return True


def _config(kept: KeptModel) -> str | None:
    content = kept.read(triton.CONFIG)
    return None if content is None else content.decode(errors="replace")


def _version(config: str | None) -> int | None:
    """The version that a config of the farm's serves."""
    return None if config is None else triton.version_of(config)


def _is_whole(kept: KeptModel, model: Model) -> bool:
    sizes = {name: engine.bytes for name, engine in model.engines.items()}
    sizes |= {name: len(content) for name, content in model.files.items()}
    return sizes.items() <= kept.files(str(model.version)).items()


def _put_back(kept: KeptModel, model: Model, before: str | None) -> None:
    """The repository as it was, after a load that failed."""
    if before is None:
        kept.remove(triton.CONFIG)
    else:
        kept.write(triton.CONFIG, before.encode())
    folder = str(model.version)
    if _version(before) != model.version:
        kept.remove_folder(folder)
        return
    there = kept.files(folder)
    for name in (_named_by(model) & set(there)) - _mentioned(there, before or ""):
        kept.remove(f"{folder}/{name}")


def _tidy(kept: KeptModel, model: Model, *, also: int | None = None) -> list[str]:
    """Remove other versions' folders, and what the config doesn't name of this version's.

    Parameters:
        also: a version to keep, which may still be served.
    """
    removed = []
    for folder in kept.folders():
        version = _FOLDER.fullmatch(folder)
        if version and (version[1] is None or int(version[1]) not in (model.version, also)):
            kept.remove_folder(folder)
            removed.append(folder)
    folder = str(model.version)
    for name in kept.files(folder) if also != model.version else ():
        if name not in _named_by(model):
            kept.remove(f"{folder}/{name}")
            removed.append(f"{folder}/{name}")
    return sorted(removed)


def _named_by(model: Model) -> set[str]:
    """The files of a version's folder."""
    return {*model.files, *model.engines, *(f"{name}.json" for name in model.engines)}


def _mentioned(there: Iterable[str], config: str) -> set[str]:
    """The files that a config names, and what lies beside them."""
    named = {name for name in there if f'"{name}"' in config}
    return named | {f"{name}.json" for name in named}


class Syncs(Noun):
    """Keeps Triton repositories."""

    def sync(
        self,
        model: str,
        repository: str | Path,
        *,
        gpus: Sequence[str],
        triton_url: str | None = None,
        precision: str | None = None,
        runtime: str | None = None,
        backend: Backend | None = None,
        for_triton: str | None = None,
        doubtful: bool = False,
        progress: TransferProgress | None = None,
    ) -> Synced:
        """Bring a model of a Triton repository to what a pull takes now, and have Triton load it.

        Parameters:
            model: ``digits@prod``; without a reference, the version that pulls take.
            repository: a folder; or a bucket, ``s3://BUCKET/PREFIX``, which needs the extra ``buckets``.
            gpus: the GPUs that Triton serves on; several need TensorRT plans.
            triton_url: its HTTP address, in its model control mode explicit.
            doubtful: accept engines that failed a gate where no other matches.

        Raises:
            TritonLoadFailed: with Triton's reason; the repository and the server are as before.
            NotFound, InvalidRequest, Conflict, DigestMismatch, Unavailable
        """
        wish = Wish(
            model=model,
            gpus=gpus,
            precision=precision,
            runtime=runtime,
            backend=backend,
            for_triton=for_triton,
            doubtful=doubtful,
        )
        server = TritonServer(triton_url) if triton_url else None
        return Sync(self.http, wish, repository, server).once(progress=progress)
