"""Options shared by several commands, and their parsers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import complete
from farm.errors import InvalidRequest

if TYPE_CHECKING:
    from farm.client import Farm
    from farm.client.meant import Meant
    from farm.signing.keys import PublicKey

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Wide = Annotated[bool, typer.Option("--wide", help="Show all columns, however wide.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="FARM_URL",
        metavar="URL",
        help="URL of the farm's API; by default http://127.0.0.1:8000.",
    ),
]
BuildId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The build's id, or its first characters; last is the newest build (of your key, where keys "
        "are required).",
        autocompletion=complete.build_ids,
    ),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="The model's name.", autocompletion=complete.models)
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="TAG",
        help="Only for this GPU: sm_89, rtx-4090, cpu.",
        autocompletion=complete.gpus,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help="Only this precision: fp32, fp16, bf16, int8, fp8, int8-dynamic.",
        autocompletion=complete.precisions,
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="RUNTIME",
        help="Only this runtime: tensorrt, tensorrt-rtx, aotinductor, onnxruntime, torchscript.",
        autocompletion=complete.runtimes,
    ),
]
Version = Annotated[
    int | None, typer.Option("--version", metavar="N", min=1, help="Only this model version.")
]

LabelFilters = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="KEY[=VALUE]",
        help="Only with this label: team=vision, or team for any value. Repeat for more.",
    ),
]

Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="DURATION",
        help="Stop waiting after this long, and exit with 6: 90s, 30m, 2h. The build goes on.",
    ),
]
Pruned = Annotated[
    str | None,
    typer.Option(
        "--prune",
        metavar="METHOD",
        help="Only engines pruned with this method: 2:4, l1:0.5; none for unpruned ones.",
        autocompletion=complete.pruned,
    ),
]

SigningKey = Annotated[
    str | None,
    typer.Option(
        "--signing-key",
        envvar="FARM_PINNED_KEY",
        metavar="FILE|FINGERPRINT",
        help="The farm's public signing key; by default what you have seen of it before.",
    ),
]
AcceptNewKey = Annotated[
    bool,
    typer.Option(
        "--accept-new-key",
        help="Believe the signing key of a farm on another machine that you have never pulled from.",
    ),
]


def example(text: str) -> str:
    """The epilog with a command's examples."""
    return f"Example: {text}"


def connect(
    url: str | None,
    *,
    key: str | None = None,
    signing_key: str | None = None,
    accept_new_key: bool = False,
    meant: Meant | None = None,
) -> Farm:
    """The farm that the user means.

    Parameters:
        meant: what errors call it, in a command with two of them.
    """
    from farm.client import Farm

    return Farm(
        url,
        key=key,
        signing_key=signing_key,
        accept_new_key=accept_new_key,
        confirm_key=_confirmed if can_ask() else None,
        meant=meant,
    )


def can_ask() -> bool:
    """Whether somebody is there to answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _confirmed(url: str, key: PublicKey) -> bool:
    """Ask the user whether a farm that was never met has this signing key."""
    typer.echo(f"The signing key of {url} isn't known here: it says {key.fingerprint}.", err=True)
    return typer.confirm("Does its operator see the same (farm signing show)?", err=True)


def again(command: str, url: str | None) -> str:
    """A follow-up command that reaches the same farm."""
    same = url is None or url == os.environ.get("FARM_URL")
    return command if same else f"{command} --url {url}"


def page(build_id: str, url: str | None) -> str:
    """Where a browser shows a build."""
    from farm.client.farm import DEFAULT_URL

    base = url or os.environ.get("FARM_URL") or DEFAULT_URL
    return f"{base.rstrip('/')}/builds/{build_id}"


def split(values: Iterable[str] | None) -> list[str]:
    """The values of an option that is repeated, comma-separated, or both."""
    parts = [part.strip() for value in values or () for part in value.split(",")]
    return list(dict.fromkeys(filter(None, parts)))


def targets(values: Iterable[str] | None) -> list[str]:
    """The targets in an option's values: ``["t4:fp16", "h100:fp8,int8,cpu"]`` → ``t4:fp16``,
    ``h100:fp8,int8`` and ``cpu``.
    """
    from farm.specs.target_text import joined

    parts = [joined(split([value])) for value in values or ()]
    return list(dict.fromkeys(one for part in parts for one in part))


def default_precisions(targets: Iterable[str]) -> list[str]:
    """fp16, unless every target names precisions of its own."""
    from farm.specs.target_text import split

    return [] if all(split(one).precisions for one in targets) else ["fp16"]


def labels(pairs: Iterable[str] | None) -> dict[str, str]:
    """``["team=vision"]`` → ``{"team": "vision"}``.

    Raises:
        InvalidRequest
    """
    found = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InvalidRequest(
                f"{pair!r} isn't a label", hint="use KEY=VALUE: --label team=vision"
            )
        found[key] = value
    return found


def builder_options(pairs: Iterable[str] | None) -> dict[str, str]:
    """``["tf32=false"]`` → ``{"tf32": "false"}``; the request checks the values.

    Raises:
        InvalidRequest: naming the options that exist.
    """
    from farm.specs.options import BuilderOptions

    return _known(pairs, BuilderOptions.model_fields, "isn't an option", "NAME=VALUE")


def task_options(pairs: Iterable[str] | None) -> dict[str, str] | None:
    """``["space=27"]`` → ``{"space": "27"}``; the request checks the values.

    Raises:
        InvalidRequest: naming the keys that exist.
    """
    from farm.specs.tasks import TaskOptions

    return _known(pairs, TaskOptions.model_fields, "says nothing of a task", "KEY=VALUE") or None


def _known(
    pairs: Iterable[str] | None, names: Collection[str], fault: str, form: str
) -> dict[str, str]:
    found = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        name = name.strip().lower()
        if not equals or name not in names:
            raise InvalidRequest(f"{pair!r} {fault}", hint=f"use {form}: {', '.join(names)}")
        found[name] = value
    return found


def output_errors(pairs: Iterable[str] | None) -> dict[str, str] | None:
    """``["logits=0.05"]`` → ``{"logits": "0.05"}``; the request checks the values.

    Raises:
        InvalidRequest
    """
    found = {}
    for pair in pairs or ():
        name, _, value = pair.rpartition("=")  # a number has no equals sign
        if not name:
            raise InvalidRequest(
                f"{pair!r} isn't an output's tolerance",
                hint="use OUTPUT=RATIO: --max-output-error logits=0.05",
            )
        found[name] = value
    return found or None


def fixed_inputs(pairs: Iterable[str] | None) -> dict[str, Any]:
    """``["sr=16000"]`` → ``{"sr": 16000}``; the request checks the values.

    Raises:
        InvalidRequest
    """
    found = {}
    for pair in pairs or ():
        # Neither the name nor a number may contain an equals sign.
        name, _, text = pair.rpartition("=")
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not name or value is None:
            raise InvalidRequest(
                f"{pair!r} isn't a fixed input",
                hint="use NAME=VALUE with a number, true, false or lists of them: --fix sr=16000, "
                "--fix 'size=[640, 480]'",
            )
        if name in found:
            raise InvalidRequest(f"{name} is fixed twice", hint="pass one value per input")
        found[name] = value
    return found


def profiles(inputs: Iterable[str] | None) -> list[dict[str, dict[str, list[int]]]]:
    """``["image=1x3:8x3:64x3"]`` → one profile of these inputs; of one shape, a fixed input.

    Raises:
        InvalidRequest
    """
    profile = dict(_input(text) for text in inputs or ())
    return [profile] if profile else []


def _input(text: str) -> tuple[str, dict[str, list[int]]]:
    # The name may hold colons (input:0); the shapes hold no equals sign.
    name, _, shapes = text.rpartition("=")
    try:
        given = [[int(axis) for axis in shape.split("x")] for shape in shapes.split(":")]
    except ValueError:
        given = []
    if not name or len(given) not in (1, 3):
        raise InvalidRequest(
            f"{text!r} isn't a profile",
            hint="use INPUT=MIN:OPT:MAX: --profile image=1x1x8x8:8x1x8x8:64x1x8x8",
        )
    low, mid, high = given * 3 if len(given) == 1 else given
    return name, {"min": low, "opt": mid, "max": high}
