"""``farm pull --triton``: engines as a model repository of Triton Inference Server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import complete, show
from farm.cli.pulled import Shown, code, document, say, say_missing, say_passed_over
from farm.specs.triton import Backend

if TYPE_CHECKING:
    from farm.client import Farm, Missing, Repository, TransferProgress
    from farm.schemas.engines import Match

TritonBackend = Annotated[
    Backend | None,
    typer.Option(
        "--triton-backend",
        metavar="BACKEND",
        help="For ONNX Runtime's engines: onnxruntime, Triton's own; or python, a model.py that imports the "
        "onnxruntime of Triton's Python. By default python for cpu.",
    ),
]
ForTriton = Annotated[
    str | None,
    typer.Option(
        "--for-triton",
        metavar="RELEASE",
        help="Only engines that this release of Triton loads: 25.10.",
        autocompletion=complete.triton_releases,
    ),
]


class IntoRepository:
    """Writes matches into a Triton repository, and shows it."""

    def __init__(self, farm: Farm, folder: Path, *, backend: Backend | None, shown: Shown) -> None:
        self._farm = farm
        self._folder = folder
        self._backend = backend
        self._shown = shown

    def of(
        self,
        matches: Sequence[Match],
        missing: Sequence[Missing] = (),
        *,
        progress: TransferProgress | None = None,
    ) -> int:
        """The exit code: whether anything is missing."""
        made = self._farm.pull_triton(
            matches, self._folder, backend=self._backend, progress=progress
        )
        lacking = [*missing, *made.left_out]
        passed_over = [one for match in matches for one in match.passed_over or ()]
        if self._shown.as_json:
            told = _document(made, self._folder, lacking)
            show.document(told | {"passed_over": passed_over})
        else:
            self._tell(made, lacking)
            say_passed_over(passed_over)
        return code(lacking)

    def _tell(self, made: Repository, lacking: Sequence[Missing]) -> None:
        for model in made.models:
            if self._shown.quiet:
                print(model.folder)
                continue
            show.line(f"{model.folder}  {model.name} v{model.version}, for Triton")
            for one in model.pulled:
                say(one)
            for note in model.notes:
                show.line(f"  {note}")
        say_missing(lacking)


def _document(made: Repository, folder: Path, missing: Sequence[Missing]) -> dict[str, Any]:
    return {
        "repository": str(folder),
        "models": [
            {
                "name": model.name,
                "version": model.version,
                "folder": str(model.folder),
                "engines": [document(one.engine.gpu, one) for one in model.pulled],
                "notes": model.notes,
            }
            for model in made.models
        ],
        "missing": [asdict(one) for one in missing],
    }
