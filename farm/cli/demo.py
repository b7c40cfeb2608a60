"""``farm demo``: two real models from scratch to pulled engines, with nothing left running."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm import installed
from farm.cli import exits, registry, show
from farm.cli.watch import follow, tell_ending
from farm.client import Farm
from farm.errors import BuildFailed, FarmError, NotFound
from farm.local import up
from farm.settings import Settings
from farm.specs.counted import counted
from farm.trust import credentials

if TYPE_CHECKING:
    from farm.client import Build
    from farm.schemas.engines import EngineView

GPUS = ("sm_86", "sm_89", "sm_120")
#: What is built of each model, one build per row.
TARGETS = ((GPUS, ("fp16", "int8")), (("cpu",), ("fp32", "int8")))


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of the demo's models, and how to submit it."""

    name: str
    image: tuple[int, int, int]
    batches: tuple[int, int, int]  #: min, opt, max
    accuracy: dict[str, Any]  #: gates that need labels


MODELS = (
    Model(
        name="digits",
        image=(1, 8, 8),
        batches=(1, 8, 64),
        accuracy={"metric": "top1", "max_drop": 0.01},
    ),
    # With random weights classes score alike, so int8 confuses them more than with trained weights.
    Model(name="resnet50", image=(3, 224, 224), batches=(1, 8, 16), accuracy={"max_error": 0.5}),
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One build of the demo."""

    model: Model
    targets: Sequence[str]
    precisions: Sequence[str]

    def __str__(self) -> str:
        return f"{self.model.name} in {' and '.join(self.precisions)} for {', '.join(self.targets)}"


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A part that failed: which, why, and what next."""

    part: Part
    build: str | None  #: its id; None if it wasn't submitted
    detail: str
    hint: str

    @classmethod
    def by(cls, err: FarmError, part: Part, build: Build | None, home: Path) -> Failed:
        """From an error; a failed build's is made from its jobs' errors."""
        from farm.client.failures import failures

        if not isinstance(err, BuildFailed) or build is None:
            named = build.id if build else None
            hint = err.hint or _look(home, named)
            return cls(part=part, build=named, detail=err.detail, hint=hint)
        view = build.view
        causes = failures(view)
        detail = "; ".join(f"{view.name_of(job)}: {error.detail}" for job, error in causes)
        hints = dict.fromkeys(error.hint for _, error in causes if error.hint)
        return cls(
            part=part,
            build=build.id,
            detail=detail or err.detail,
            hint="; ".join(hints) or _look(home, build.id),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "model": self.part.model.name,
            "targets": list(self.part.targets),
            "precisions": list(self.part.precisions),
            "build": self.build,
            "error": self.detail,
            "hint": self.hint,
        }


def run(as_json: bool, keep: Path | None) -> int:
    """Run the demo in its own home; return the exit code: whether all parts succeeded.

    Parameters:
        keep: folder for the pulled engines, by default inside the home.

    Raises:
        FarmError: a part of the farm didn't start, or a model couldn't be made.
    """
    start = time.monotonic()
    settings = Settings(home=Settings().home / "demo")
    files = settings.home / "models"
    folder = keep or settings.home / "engines"
    say = _silent if as_json else show.line
    say("Creating two models with data, and starting a farm: SQLite, Valkey, API, worker, Flower …")
    with _models(files, quiet=as_json) as made, up.embedded(settings) as farm:
        made()
        say(f"The farm is up after {show.duration(time.monotonic() - start)}:")
        say(f"  API {farm.addresses.api}/docs   Flower {farm.addresses.flower}")
        say(f"  Flower asks for the key in {credentials.home_file(settings.home)}\n")
        with Farm(farm.addresses.api, key=farm.key, home=settings.home) as client:
            shown = run_parts(client, settings.home, folder, as_json=as_json)
    took = time.monotonic() - start
    if as_json:
        show.document({"seconds": round(took, 1)} | shown.as_json())
        return shown.code
    for name, engines in shown.engines.items():
        show.line(f"\n{name}")
        registry.engines_table(engines, empty="no engines")
    show.line(
        f"\n{counted(len(shown.pulled), 'engine')} pulled into {folder}, each verified against its digest."
    )
    for failed in shown.failed:
        print(f"error: {_named(failed)}: {failed.detail}", file=sys.stderr)
        print(f"hint: {failed.hint}", file=sys.stderr)
    if shown.failed:
        done = len(MODELS) * len(TARGETS) - len(shown.failed)
        show.line(f"{done} of {counted(done + len(shown.failed), 'build')} succeeded.")
    show.line(f"Done in {show.duration(took)}; nothing is left running.")
    return shown.code


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Results of the demo's parts."""

    pulled: Sequence[Path]
    engines: Mapping[str, Sequence[EngineView]]
    failed: Sequence[Failed]

    @property
    def code(self) -> int:
        return exits.FAILED if self.failed else exits.OK

    def as_json(self) -> dict[str, Any]:
        return {
            "pulled": [str(path) for path in self.pulled],
            "engines": self.engines,
            "failed": [failed.as_json() for failed in self.failed],
        }


def run_parts(client: Farm, home: Path, folder: Path, *, as_json: bool) -> Shown:
    """Submit every part, follow it and pull its engines; a failed part doesn't affect the others."""
    parts = [
        Part(model=model, targets=targets, precisions=precisions)
        for model in MODELS
        for targets, precisions in TARGETS
    ]
    failed: list[Failed] = []
    builds: list[tuple[Part, Build]] = []
    for part in parts:
        try:
            builds.append((part, _submit(client, home / "models", part)))
        except FarmError as err:
            failed.append(Failed.by(err, part, None, home))
    pulled: list[Path] = []
    for part, build in builds:
        try:
            _follow(build, as_json=as_json)
        except FarmError as err:
            failed.append(Failed.by(err, part, build, home))
    for part, build in builds:
        try:
            # A failed build may still have engines.
            if build.engines():
                pulled += build.pull(folder)
        except FarmError as err:
            failed.append(Failed.by(err, part, build, home))
    engines = {model.name: _engines(client, model) for model in MODELS}
    return Shown(pulled=pulled, engines=engines, failed=failed)


def _engines(client: Farm, model: Model) -> Sequence[EngineView]:
    try:
        return client.engines(model.name)
    except NotFound:
        return ()  # nothing of this model could be submitted


def _silent(_text: str) -> None:
    return None


def _named(failed: Failed) -> str:
    return f"build {failed.build}, {failed.part}" if failed.build else str(failed.part)


def _look(home: Path, build: str | None) -> str:
    """What to do about a failed part whose error has no hint."""
    again = "run the demo again: succeeded jobs are kept"
    if build is None:
        return again
    farm = f"FARM_HOME={home} farm"
    return f"read its log with {farm} up, then {farm} logs {build}; or {again}"


def _follow(build: Build, *, as_json: bool) -> None:
    """Show a build until it ends.

    Raises:
        BuildFailed, BuildCancelled
    """
    if as_json:
        build.wait()
    else:
        follow(build)
        tell_ending(build.refresh().view)
        build.raise_for_state()


@contextmanager
def _models(folder: Path, *, quiet: bool) -> Iterator[Any]:
    """Create the models in a separate process: the control plane never imports torch."""
    maker = subprocess.Popen(
        installed.command("workers.demo", str(folder)),
        env=installed.environment("all"),
        stdout=subprocess.DEVNULL if quiet else None,
    )

    def made() -> None:
        if maker.wait() != 0:
            raise FarmError(
                "couldn't create the demo's models",
                hint="install their dependencies: pip install 'engine-farm[all]'",
            )

    try:
        yield made
    finally:
        maker.kill()
        maker.wait()


def _submit(client: Farm, files: Path, part: Part) -> Build:
    """One build for the GPUs and one for CPUs: they share one export and one calibration."""
    model = part.model
    shapes = zip(("min", "opt", "max"), model.batches, strict=True)
    profile = {"image": {which: [batch, *model.image] for which, batch in shapes}}
    return client.submit(
        files / f"{model.name}.pt2",
        targets=part.targets,
        precisions=part.precisions,
        calibration=files / f"{model.name}-calibration.npz",
        evaluation=files / f"{model.name}-evaluation.npz",
        profiles=[profile],
        labels={"from": "demo"},
        **model.accuracy,
    )
