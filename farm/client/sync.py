"""Keeps a model of a Triton repository at an alias: the old version goes once the new one is loaded.

Files in use are never changed: a version has its folder, in it an engine has a file named by its id, and
``config.pbtxt`` names both. That file is replaced last, and put back if Triton can't load what it names.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farm.client.file_names import checked
from farm.client.http import Http
from farm.client.noun import Noun
from farm.client.partial import write_whole
from farm.client.progress import TransferProgress
from farm.client.pulls import Pulls
from farm.client.triton import locked, place
from farm.client.triton_server import TritonServer
from farm.errors import InvalidRequest, TritonLoadFailed
from farm.registry import triton
from farm.registry.triton import Model
from farm.schemas.engines import Match
from farm.specs.triton import Backend

#: The config that Triton has loaded from this folder, by its digest.
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
    removed: list[str]  #: what went from the folder, by name
    why: str
    notes: tuple[str, ...]


class Sync:
    """A folder, kept at what the farm says.

    Parameters:
        repository: for Triton's ``--model-repository``; other models in it are left alone.
        server: told to load what has changed. Without one the version before stays in the folder until the
            next change, for a Triton that polls.

    Raises:
        InvalidRequest: the repository isn't a folder.
    """

    def __init__(
        self, http: Http, wish: Wish, repository: str | Path, server: TritonServer | None = None
    ) -> None:
        if "://" in str(repository):
            raise InvalidRequest(
                f"{str(repository)!r} is a bucket: farm sync writes to folders alone",
                hint="sync to a folder, and have Triton read that; or mirror it to the bucket yourself",
            )
        self._http = http
        self._wish = wish
        self._repository = Path(repository)
        self._server = server

    def wanted(self) -> tuple[Model, list[Match]]:
        """The model that the repository is to hold now.

        Raises:
            NotFound, UnknownGpu, Unavailable
            InvalidRequest: the engines can't be one model of Triton.
        """
        wish, matches, version = self._wish, list[Match](), None
        name = wish.model
        for gpu in wish.gpus:
            matches.append(
                Pulls(self._http).match(
                    name,
                    gpu,
                    version=version,
                    precision=wish.precision,
                    runtime=wish.runtime,
                    doubtful=wish.doubtful,
                    for_triton=wish.for_triton,
                )
            )
            # All of one version, even if another is promoted meanwhile.
            name, version = wish.model.partition("@")[0], matches[0].engine.version
        return self._one_model(matches), matches

    def once(
        self,
        wanted: tuple[Model, list[Match]] | None = None,
        *,
        progress: TransferProgress | None = None,
    ) -> Synced:
        """Bring the folder, and Triton, to what the farm says now.

        Parameters:
            wanted: what ``wanted`` said a moment ago.

        Raises:
            TritonLoadFailed: with Triton's reason; the folder and the server are as before.
            Conflict: the folder has a model that ``farm sync`` and ``farm pull`` haven't made.
            NotFound, UnknownGpu, InvalidRequest, DigestMismatch, Unavailable
        """
        model, matches = wanted or self.wanted()
        why = {match.engine.id: match.why for match in matches}
        with locked(self._repository / checked(model.name)) as root:
            before = _config(root)
            changed = before != model.config or not _is_whole(root, model)
            if changed:
                place(self._http, model, root, why=why, progress=progress)
                write_whole(root / triton.CONFIG, model.config.encode())
            loaded = False
            if self._server is not None:
                loaded = self._load(self._server, root, model, before)
                removed = _tidy(root, model)
            else:
                removed = _tidy(root, model, also=_version(before)) if changed else []
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

    def _load(self, server: TritonServer, root: Path, model: Model, before: str | None) -> bool:
        """Have the server load the model, unless it serves exactly this already; return whether it had to.

        Raises:
            TritonLoadFailed: the folder is as it was before.
            Unavailable: it isn't known whether the server loaded it; nothing is removed.
        """
        digest = hashlib.sha256(model.config.encode()).hexdigest()
        mark = root / _LOADED
        is_told = mark.is_file() and mark.read_text() == digest
        if is_told and server.is_ready(model.name, model.version):
            return False
        try:
            server.load(model.name, model.version)
        except TritonLoadFailed:
            if before != model.config:
                _put_back(root, model, before)
            raise
        write_whole(mark, digest.encode())
        return True


def _config(root: Path) -> str | None:
    path = root / triton.CONFIG
    return path.read_text(errors="replace") if path.is_file() else None


def _version(config: str | None) -> int | None:
    """The version that a config of the farm's serves."""
    return None if config is None else triton.version_of(config)


def _is_whole(root: Path, model: Model) -> bool:
    folder = root / str(model.version)
    sizes = {name: engine.bytes for name, engine in model.engines.items()}
    sizes |= {name: len(content) for name, content in model.files.items()}
    paths = {folder / name: size for name, size in sizes.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _put_back(root: Path, model: Model, before: str | None) -> None:
    """The folder as it was, after a load that failed."""
    config = root / triton.CONFIG
    if before is None:
        config.unlink()
    else:
        write_whole(config, before.encode())
    version = _version(before)
    folder = root / str(model.version)
    if version != model.version:
        shutil.rmtree(folder)
        return
    for name in _named_by(model) - _mentioned(folder, before or ""):
        (folder / name).unlink(missing_ok=True)


def _tidy(root: Path, model: Model, *, also: int | None = None) -> list[str]:
    """Remove other versions' folders, and what the config doesn't name of this version's.

    Parameters:
        also: a version to keep, which may still be served.
    """
    removed = []
    for folder in root.iterdir():
        version = _FOLDER.fullmatch(folder.name)
        if not version or not folder.is_dir() or folder.is_symlink():
            continue
        if version[1] is None or int(version[1]) not in (model.version, also):
            shutil.rmtree(folder)
            removed.append(folder.name)
    folder = root / str(model.version)
    for path in folder.iterdir() if also != model.version else ():
        if path.is_file() and path.name not in _named_by(model):
            path.unlink()
            removed.append(f"{folder.name}/{path.name}")
    return sorted(removed)


def _named_by(model: Model) -> set[str]:
    """The files of a version's folder."""
    return {*model.files, *model.engines, *(f"{name}.json" for name in model.engines)}


def _mentioned(folder: Path, config: str) -> set[str]:
    """The files of a folder that a config names, and what lies beside them."""
    named = {path.name for path in folder.iterdir() if f'"{path.name}"' in config}
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
            gpus: the GPUs that Triton serves on; several need TensorRT plans.
            triton_url: its HTTP address, in its model control mode explicit.
            doubtful: accept engines that failed a gate where no other matches.

        Raises:
            TritonLoadFailed: with Triton's reason; the folder and the server are as before.
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
