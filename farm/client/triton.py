"""Model repositories of Triton Inference Server, in folders: what ``farm.registry.triton`` says, written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from farm.client.download import Pulled, download
from farm.client.file_names import checked
from farm.client.http import Http
from farm.client.noun import Noun
from farm.client.partial import write_whole
from farm.client.progress import TransferProgress
from farm.client.sets import Missing, target_of
from farm.errors import Conflict
from farm.registry import triton
from farm.registry.triton import Model
from farm.schemas.engines import Match
from farm.specs.quoting import quoted
from farm.specs.triton import Backend

#: Held while a model's folder is written; from then on it marks the model as the farm's.
LOCK = ".farm.lock"


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model in a Triton repository."""

    name: str
    version: int
    folder: Path
    pulled: list[Pulled]
    notes: tuple[str, ...]  #: what Triton needs to be given beside


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A folder for Triton's ``--model-repository``, and the engines that Triton can't serve."""

    models: list[Placed]
    left_out: list[Missing]


class Repositories(Noun):
    """Writes Triton repositories."""

    def pull_triton(
        self,
        matches: Sequence[Match],
        folder: str | Path = ".",
        *,
        backend: Backend | None = None,
        progress: TransferProgress | None = None,
    ) -> Repository:
        """Download engines of one version into a Triton model repository.

        TensorRT plans for several GPUs are one model; the engines of other runtimes are models of their own.

        Parameters:
            folder: for Triton's ``--model-repository``; other models in it are left alone.
            backend: for engines of ONNX Runtime; by default Python for ``cpu``, else Triton's own.

        Raises:
            TritonUnsupported: Triton can serve none of them.
            Conflict: another pull is writing this model, or somebody else made it.
            DigestMismatch, Unavailable
        """
        why = {match.engine.id: match.why for match in matches}
        models, left_out = triton.models([match.engine for match in matches], backend=backend)
        if left_out and not models:
            raise left_out[0][1]
        placed = []
        for model in models:
            with locked(Path(folder) / checked(model.name)) as root:
                pulled = place(self.http, model, root, why=why, progress=progress)
                write_whole(root / triton.CONFIG, model.config.encode())
            placed.append(
                Placed(
                    name=model.name,
                    version=model.version,
                    folder=root,
                    pulled=pulled,
                    notes=model.notes,
                )
            )
        missing = [
            Missing(
                target=target_of(engine),
                precision=engine.precision,
                why=f"{error.detail}; {error.hint}",
                engine=engine.id,
            )
            for engine, error in left_out
        ]
        return Repository(models=placed, left_out=missing)


@contextmanager
def locked(root: Path) -> Iterator[Path]:
    """A model's folder, created if missing, written by nobody else until the block ends.

    Raises:
        Conflict: another process writes it, or somebody else made the model in it.
    """
    import fcntl

    root.mkdir(parents=True, exist_ok=True)
    _check_ours(root)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(root / LOCK, flags, 0o666), "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another farm pull or farm sync is writing {root}",
                hint="wait for it, or end it; two may not keep one model",
            ) from None
        yield root


def _check_ours(root: Path) -> None:
    config = root / triton.CONFIG
    content = config.read_bytes() if config.is_file() else None
    names = {one.name for one in root.iterdir()}
    check_ours(str(root), content, names)


def check_ours(where: str, config: bytes | None, names: Set[str]) -> None:
    """Raise Conflict if somebody else made the model: its files would be replaced or removed.

    Parameters:
        config: its ``config.pbtxt``, if there is one.
        names: what is in the model's folder.
    """
    if config is not None:
        is_ours = config.startswith(triton.MADE_BY.encode())
    else:
        # Triton serves some models without a config. The lock is there from our first write on.
        is_ours = LOCK in names or not any(name.isdecimal() for name in names)
    if not is_ours:
        raise Conflict(
            f"the model in {where} isn't the farm's",
            hint="use another folder or prefix for the repository, or move this model out of it",
        )


def place(
    http: Http,
    model: Model,
    root: Path,
    *,
    why: Mapping[str, str],
    progress: TransferProgress | None = None,
) -> list[Pulled]:
    """Write the folder of a model's version, which gets its name once it is whole; not ``config.pbtxt``.

    Where the folder is there already, files that it lacks are added: an engine's file is named by its id.

    Parameters:
        why: engine's id → why it was chosen.

    Raises:
        DigestMismatch, Unavailable
    """
    version = root / str(model.version)
    is_new = not version.is_dir()
    # The same name each time: a broken download is resumed.
    folder = root / f".{model.version}.partial" if is_new else version
    folder.mkdir(exist_ok=True)
    pulled = [
        download(http, engine, folder / checked(name), why=why[engine.id], progress=progress)
        for name, engine in model.engines.items()
    ]
    for name, content in model.files.items():
        write_whole(folder / name, content)
    if not is_new:
        return pulled
    folder.rename(version)
    return [_moved(one, version / one.path.name) for one in pulled]


def _moved(pulled: Pulled, path: Path) -> Pulled:
    load = pulled.load.replace(quoted(str(pulled.path)), quoted(str(path)), 1)
    return replace(pulled, path=path, load=load)
