"""``farm pull``: download and verify the right engine for a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import complete, transfer
from farm.cli.options import (
    AcceptNewKey,
    Json,
    Pruned,
    Runtime,
    SigningKey,
    Url,
    Version,
    connect,
    example,
    split,
)
from farm.cli.pull_by_id import engine_meant, refuse_choices
from farm.cli.pull_triton import ForTriton, IntoRepository, TritonBackend
from farm.cli.pulled import Shown
from farm.errors import InvalidRequest
from farm.machine import facts, gpus
from farm.specs.machines import Machine

_NAME_ONE = "specify the engine's GPU: --gpu sm_89, or --gpu cpu for an engine that needs none"

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.schemas.engines import Match


def register(app: typer.Typer) -> None:
    text = "farm pull digits --gpu rtx-4090 --precision int8 -o engines"
    app.command(rich_help_panel="Engines", epilog=example(text))(pull)


def pull(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="The model's name; or an engine's id, unless a model has that name.",
            autocompletion=complete.references,
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            metavar="TAG",
            help="GPU tags, repeated or comma-separated; by default this machine's.",
            autocompletion=complete.gpus,
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            metavar="PRECISION",
            help="Precisions, repeated or comma-separated; by default the best by the goal of farm bench, "
            "else the fastest if measured, else the smallest.",
            autocompletion=complete.precisions,
        ),
    ] = None,
    runtime: Runtime = None,
    version: Version = None,
    prune: Pruned = None,
    doubtful: Annotated[
        bool,
        typer.Option("--doubtful", help="Accept an engine that failed a gate if no other matches."),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="ID", help="Exactly the engine with this id, whatever its GPU."
        ),
    ] = None,
    build: Annotated[
        str | None,
        typer.Option(
            "--build",
            metavar="ID",
            help="Every engine of this build.",
            autocompletion=complete.build_ids,
        ),
    ] = None,
    all_targets: Annotated[
        bool,
        typer.Option(
            "--all-targets", help="The best engine for each target that the version has any for."
        ),
    ] = False,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx",
            help="The version's ONNX instead, in the types of --precision or as it was exported, and "
            "how to build an engine from it.",
        ),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="List the version's other engines for the GPU, and why not."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Download nothing: only say which engine it would be, and why."
        ),
    ] = False,
    has: Annotated[
        list[str] | None,
        typer.Option(
            "--has",
            metavar="NAME=VALUE",
            help="What the machine has that is to run the engine, repeated: os, driver, tensorrt, "
            "tensorrt-rtx, onnxruntime, torch; without --gpu, what this machine has.",
            autocompletion=complete.facts,
        ),
    ] = None,
    triton: Annotated[
        bool,
        typer.Option("--triton", help="Make a model repository of Triton Inference Server."),
    ] = False,
    triton_backend: TritonBackend = None,
    for_triton: ForTriton = None,
    signing_key: SigningKey = None,
    accept_new_key: AcceptNewKey = False,
    folder: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write to.")
    ] = Path(),
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print the files' paths alone.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Download a model's engine for a GPU, with its manifest beside it.

    Or exactly one engine by its id, a build's engines, or a version's for all its targets. On a terminal it
    prints how to run the engine; the manifest says it too, under ``load``.

    A pruned engine is pulled only if ``--prune`` asks for it or the version has no other; a doubtful
    one, which failed a gate, only with ``--doubtful``.

    With ``--triton`` the output folder becomes a model repository for Triton Inference Server.

    Signature and bytes are verified before the file is renamed into place; interrupted downloads are
    resumed.
    """
    _check_named(model, engine, build, {"--all-targets": all_targets, "--onnx": onnx})
    farm = connect(url, signing_key=signing_key, accept_new_key=accept_new_key)
    only: dict[str, Any] = {
        "runtime": runtime,
        "version": version,
        "prune": prune,
        "doubtful": doubtful,
    }
    only |= {"explain": explain, "for_triton": for_triton}
    told = Machine.of(has or ())
    choices: dict[str, object] = {"--gpu": gpu, "--precision": precision, "--runtime": runtime}
    choices |= {"--version": version, "--prune": prune, "--has": has}
    for_repository: dict[str, object] = {"--triton": triton, "--triton-backend": triton_backend}
    if triton_backend and not triton:
        raise InvalidRequest("--triton-backend is for a repository", hint="add --triton")
    shown = Shown(as_json=as_json, quiet=quiet)
    bar = transfer.bar(hidden=as_json or quiet)
    if dry_run:
        more = {"--build": build, "--onnx": onnx, "--all-targets": all_targets}
        _check_dry_run(
            {**more, "--triton": triton, "--engine": engine or engine_meant(farm, model)}
        )
    if build is not None:
        refuse_choices({**choices, **for_repository, "--for-triton": for_triton}, "a build's id")
        with bar as progress:
            made = farm.pull_build(build, folder, doubtful=doubtful, progress=progress)
        raise typer.Exit(shown.whole(made, build=build))
    repository = IntoRepository(farm, folder, backend=triton_backend, shown=shown)
    engine = engine or engine_meant(farm, model)
    if engine is not None:
        choices |= {"--all-targets": all_targets, "--for-triton": for_triton, "--onnx": onnx}
        refuse_choices(choices, "an engine's id")
        with bar as progress:
            one = farm.match_by_id(engine, doubtful=doubtful)
            if triton:
                raise typer.Exit(repository.of([one], progress=progress))
            shown.by_id(farm.fetch(one, folder, progress=progress))
        return
    assert model is not None
    if onnx:
        others: dict[str, object] = {
            "--gpu": gpu,
            "--runtime": runtime,
            "--prune": prune,
            "--has": has,
        }
        others |= {"--all-targets": all_targets, "--for-triton": for_triton}
        refuse_choices({**others, **for_repository}, "--onnx")
        with bar as progress:
            asked: Sequence[str | None] = split(precision) or [None]
            files = [
                farm.pull_onnx(model, folder, precision=one, version=version, progress=progress)
                for one in asked
            ]
        shown.onnx(files)
        return
    if all_targets:
        refuse_choices({"--gpu": gpu, "--has": has}, "--all-targets")
        among = {name: value for name, value in only.items() if name != "explain"}
        found = farm.match_all_targets(model, precisions=split(precision), **among)
        with bar as progress:
            if triton:
                raise typer.Exit(repository.of(found.matches, found.missing, progress=progress))
            made = farm.fetch_all_targets(found, folder, progress=progress)
        raise typer.Exit(shown.whole(made))
    tags = split(gpu)
    # Triton brings its own libraries.
    only["has"] = told if tags or triton else facts.here().but(told)
    tags = tags or detected()
    matches = list(_matches(farm, model, tags, split(precision) or [None], only))
    if dry_run:
        shown.foretold(matches)
        return
    with bar as progress:
        if triton:
            raise typer.Exit(repository.of([one for _, one in matches], progress=progress))
        pulled = [(tag, farm.fetch(one, folder, progress=progress)) for tag, one in matches]
    shown.matched(pulled, [one.passed_over for _, one in matches])


def _check_named(
    model: str | None, engine: str | None, build: str | None, of_model: Mapping[str, bool]
) -> None:
    """Refuse a command line that names nothing to pull, or more than one thing.

    Parameters:
        of_model: options that go with a model's name alone.

    Raises:
        InvalidRequest
    """
    named = {"MODEL": model, "--engine": engine, "--build": build}
    given = [name for name, value in named.items() if value is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"{' and '.join(given)} name different things" if given else "nothing to pull is named",
            hint="name one: farm pull MODEL, farm pull --engine ID, or farm pull --build ID",
        )
    for option in (option for option, is_given in of_model.items() if is_given and model is None):
        raise InvalidRequest(
            f"{option} doesn't go with {given[0]}", hint=f"farm pull MODEL {option}"
        )


def _check_dry_run(given: Mapping[str, object]) -> None:
    """Refuse to foretell what isn't chosen among a version's engines.

    Raises:
        InvalidRequest
    """
    for option in (option for option, value in given.items() if value):
        raise InvalidRequest(
            f"--dry-run says which engine a GPU would get of a model: it doesn't go with {option}",
            hint="name a model: farm pull MODEL --gpu TAG --dry-run",
        )


def detected() -> list[str]:
    """This machine's distinct GPU tags: the product's, else the compute capability's."""
    try:
        found = gpus.look()
    except gpus.NoGpu as err:
        raise InvalidRequest(str(err), hint=_NAME_ONE) from err
    tags = list(dict.fromkeys(gpu.tag for gpu in found if gpu.tag))
    if not tags:
        raise InvalidRequest("found no NVIDIA GPU on this machine", hint=_NAME_ONE)
    return tags


def _matches(
    farm: Farm,
    model: str,
    tags: Sequence[str],
    precisions: Sequence[str | None],
    only: Mapping[str, Any],
) -> Iterator[tuple[str, Match]]:
    """The best match for each tag and precision, each engine once."""
    seen: set[str] = set()
    for tag in tags:
        for one in precisions:
            match = farm.match(model, tag, precision=one, **only)
            if match.engine.id not in seen:
                seen.add(match.engine.id)
                yield tag, match
