"""``farm demo``: two real models, from nothing to pulled engines, and nothing left running."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm import up
from farm.cli import exits, registry, show
from farm.cli.watch import watch_build
from farm.client import Farm
from farm.errors import FarmError
from farm.settings import Settings

if TYPE_CHECKING:
    from farm.client import Build

GPUS = ("sm_86", "sm_89", "sm_120")


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of the demo's models, and how it is submitted."""

    name: str
    image: tuple[int, int, int]
    batches: tuple[int, int, int]  #: min, opt, max
    accuracy: dict[str, Any]  #: what labels allow to ask for


MODELS = (
    Model(
        name="digits",
        image=(1, 8, 8),
        batches=(1, 8, 64),
        accuracy={"metric": "top1", "max_drop": 0.01},
    ),
    Model(name="resnet50", image=(3, 224, 224), batches=(1, 8, 16), accuracy={}),
)


def run(as_json: bool, keep: Path | None) -> int:
    """Run the demo in a home of its own; return the exit code.

    Parameters:
        keep: where the pulled engines go, by default below the home.

    Raises:
        FarmError: a part of the farm didn't start, or a model couldn't be made.
    """
    start = time.monotonic()
    settings = Settings(home=Settings().home / "demo")
    files = settings.home / "models"
    folder = keep or settings.home / "engines"
    say = _silent if as_json else show.line
    say(
        "Making two models with their data, and starting a farm: SQLite, Valkey, API, worker, Flower …"
    )
    with _models(files, quiet=as_json) as made, up.embedded(settings) as farm:
        made()
        say(f"The farm is up after {show.duration(time.monotonic() - start)}:")
        say(f"  API {farm.addresses.api}/docs   Flower {farm.addresses.flower}\n")
        with Farm(farm.addresses.api) as client:
            builds = [build for model in MODELS for build in _submit(client, files, model)]
            for build in builds:
                code = _follow(build, farm.addresses.api, as_json=as_json)
                if code != exits.OK:
                    return code
            pulled = [path for build in builds for path in build.pull(folder)]
            found = {model.name: client.engines(model.name) for model in MODELS}
    took = time.monotonic() - start
    if as_json:
        paths = [str(path) for path in pulled]
        show.document({"seconds": round(took, 1), "pulled": paths, "engines": found})
        return exits.OK
    for name, engines in found.items():
        show.line(f"\n{name}")
        registry.engines_table(engines)
    show.line(f"\n{len(pulled)} engines pulled into {folder}, each verified against its digest.")
    show.line(f"Done in {show.duration(took)}; nothing is left running.")
    return exits.OK


def _silent(_text: str) -> None:
    return None


def _follow(build: Build, url: str, *, as_json: bool) -> int:
    if as_json:
        build.wait()
        return exits.OK
    return watch_build(build, url, as_json=False, hints=False)


@contextmanager
def _models(folder: Path, *, quiet: bool) -> Iterator[Any]:
    """Make the models in a process of its own: the control plane never imports torch."""
    maker = subprocess.Popen(
        [sys.executable, "-m", "workers.demo", str(folder)],
        stdout=subprocess.DEVNULL if quiet else None,
    )

    def made() -> None:
        if maker.wait() != 0:
            raise FarmError(
                "the demo's models couldn't be made",
                hint="install what they need: pip install -c constraints.txt '.[worker,cpu,rtx,demo]'",
            )

    try:
        yield made
    finally:
        maker.kill()
        maker.wait()


def _submit(client: Farm, files: Path, model: Model) -> list[Build]:
    """One build for the GPUs and one for CPUs: they share one export and one calibration."""
    shapes = zip(("min", "opt", "max"), model.batches, strict=True)
    profile = {"image": {which: [batch, *model.image] for which, batch in shapes}}
    common: dict[str, Any] = {
        "calibration": files / f"{model.name}-calibration.npz",
        "evaluation": files / f"{model.name}-evaluation.npz",
        "profiles": [profile],
        "labels": {"from": "demo"},
        **model.accuracy,
    }
    source = files / f"{model.name}.pt2"
    return [
        client.submit(source, targets=GPUS, precisions=["fp16", "int8"], **common),
        client.submit(source, targets=["cpu"], precisions=["fp32", "int8"], **common),
    ]
