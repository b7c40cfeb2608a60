"""Running an engine on one of the farm's workers, as a quick check."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from farm.client import answers, data
from farm.client.noun import Noun
from farm.client.progress import TransferProgress
from farm.client.submission import checked
from farm.client.upload import digest_of, require_file, upload
from farm.errors import (
    DigestMismatch,
    FarmError,
    InvalidRequest,
    StageFailed,
    WaitTimedOut,
    from_code,
)
from farm.schemas.inference import InferenceView, InferRequest
from farm.specs import durations, references
from farm.specs.inference import MAX_BYTES, TIMEOUT_S
from farm.specs.states import ENDED, JobState

_FIRST_POLL_S = 0.1
_LONGEST_POLL_S = 1.0
_SILENCE_S = 60.0
#: Of a file of outputs: its arrays, and their names and headers.
_MOST_BYTES = MAX_BYTES + 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What an engine gave."""

    view: InferenceView
    engine: str  #: the engine's id
    why: str  #: why this one
    path: Path | None = None  #: of the outputs, if they were asked for

    def arrays(self) -> Mapping[str, Any]:
        """The outputs by name, as NumPy's arrays.

        Raises:
            InvalidRequest: they weren't written, or NumPy isn't imported.
        """
        numpy = sys.modules.get("numpy")
        if self.path is None or numpy is None:
            raise InvalidRequest(
                "the outputs aren't here as arrays", hint="pass output=…, and import numpy"
            )
        with numpy.load(self.path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


class Inferences(Noun):
    """Runs engines."""

    def infer(
        self,
        model: str | None = None,
        inputs: str | Path | Mapping[str, Any] = "",
        output: str | Path | None = None,
        *,
        engine: str | None = None,
        gpu: str | None = None,
        precision: str | None = None,
        runtime: str | None = None,
        version: int | None = None,
        timeout: float = TIMEOUT_S,
        progress: TransferProgress | None = None,
    ) -> Inference:
        """Run an engine once on a worker that can, and wait for what it gives.

        Parameters:
            model: as in ``match``: ``digits``, ``digits@7``, ``digits@prod``.
            inputs: an ``.npz``, ``.npy`` or ``.safetensors`` file with one array an input, or the arrays.
            output: the ``.npz`` file to write the outputs to.
            engine: an engine's id, instead of a model.
            gpu: by default any that an online worker has, else ``cpu``.
            timeout: seconds; the inference is cancelled then.

        Raises:
            DataRefused: the engine doesn't take these inputs.
            Conflict: no online worker can run it.
            InvalidRequest: the output has no folder to go to.
            StageFailed: or a subclass; it can't run on these inputs.
            WaitTimedOut, NotFound, Unavailable
        """
        if output is not None:
            _check_folder(Path(output))
        name, of = references.split(model, version) if model else (None, references.Reference())
        with _on_disk(inputs) as path:
            data.check(path)
            digest = digest_of(path, progress=progress)
            request = checked(
                InferRequest,
                engine=engine,
                model=name,
                version=of.version,
                alias=of.alias,
                gpu=gpu,
                precision=precision,
                runtime=runtime,
                inputs=digest,
            )
            upload(self.http, path, digest, progress=progress)
            body = request.model_dump(mode="json")
            # Repeatable: an equal inference is the same one.
            first = self.http.read(InferenceView, "POST", "/v1/infer", json=body)
        view = self._ended(first, timeout)
        _raise_for_state(view)
        written = None if output is None else self._write(view, Path(output))
        return Inference(view=view, engine=first.engine or "", why=first.why or "", path=written)

    def _ended(self, view: InferenceView, timeout_s: float) -> InferenceView:
        path = f"/v1/infer/{view.id}"
        until, pause_s = time.monotonic() + timeout_s, _FIRST_POLL_S
        try:
            while view.state not in ENDED:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    raise WaitTimedOut(
                        f"inference {view.id} hadn't ended after {durations.told(timeout_s)}, and is "
                        "cancelled",
                        hint=f"it waits for {view.waits_for}"
                        if view.waits_for
                        else "see what the workers do: farm workers",
                    )
                time.sleep(min(pause_s, left_s))
                pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
                view = self.http.read(InferenceView, "GET", path)
        except BaseException:  # also Ctrl+C: nobody waits for it any more
            with suppress(FarmError):
                self.http.request("DELETE", path)
            raise
        return view

    def _write(self, view: InferenceView, path: Path) -> Path:
        """Download the outputs, verified before the file gets its name."""
        found = hashlib.sha256()
        new = path.with_name(f".{path.name}.new")
        try:
            with (
                new.open("wb") as file,
                self.http.stream(
                    f"/v1/infer/{view.id}/outputs", headers={}, read_timeout_s=_SILENCE_S
                ) as response,
            ):
                for chunk in answers.chunks(response):
                    if file.tell() + len(chunk) > _MOST_BYTES:
                        raise answers.too_long("the file of outputs", _MOST_BYTES)
                    found.update(chunk)
                    file.write(chunk)
            if f"sha256:{found.hexdigest()}" != view.digest:
                raise DigestMismatch("the outputs arrived damaged", hint="run it again")
            new.replace(path)
        except httpx2.TransportError as err:
            raise self.http.unreachable(err) from err
        finally:
            new.unlink(missing_ok=True)
        return path


def _check_folder(output: Path) -> None:
    """Before anything is run, whether its outputs can be written.

    Raises:
        InvalidRequest
    """
    if output.is_dir():
        raise InvalidRequest(f"{output} is a folder", hint="name a file: outputs.npz")
    if not output.parent.is_dir():
        raise InvalidRequest(f"there is no folder {output.parent}", hint="make it, or name another")


def _raise_for_state(view: InferenceView) -> None:
    if view.state is JobState.CANCELLED:
        raise StageFailed(f"inference {view.id} was cancelled", hint="run it again")
    if view.state is JobState.FAILED:
        error = view.error
        if error is None:
            raise StageFailed(f"inference {view.id} failed, and nothing says why")
        raise from_code(error.code, error.detail, error.hint)


@contextmanager
def _on_disk(inputs: str | Path | Mapping[str, Any]) -> Iterator[Path]:
    if not isinstance(inputs, Mapping):
        require_file(Path(inputs))
        yield Path(inputs)
        return
    numpy = sys.modules.get("numpy")
    if numpy is None:
        raise InvalidRequest("these inputs aren't arrays", hint="pass NumPy's, or a file of them")
    with tempfile.TemporaryDirectory(prefix="farm-") as folder:
        path = Path(folder) / "inputs.npz"
        numpy.savez(path, **inputs)
        yield path
