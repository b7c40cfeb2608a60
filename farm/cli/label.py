"""``farm label`` and ``farm note``: what people say of a model or a version."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, connect, example
from farm.errors import InvalidRequest

if TYPE_CHECKING:
    from farm.schemas.models import ModelDetail, VersionView

_PANEL = "Engines"

What = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@VERSION]",
        help="digits@7 or digits@prod for a version, digits for the model.",
        autocompletion=complete.references,
    ),
]


def register(app: typer.Typer) -> None:
    text = "farm label digits@7 team=vision reviewed-"
    app.command(rich_help_panel=_PANEL, epilog=example(text))(label)
    text = 'farm note digits@7 "trained on the May data"'
    app.command(rich_help_panel=_PANEL, epilog=example(text))(note)


def label(
    model: What,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE|KEY-]...",
            help="Labels to set, and with a hyphen to remove.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Set and remove labels of a version or a model, or show them."""
    farm = connect(url)
    given = _changes(changes or ())
    _print(farm.describe(model, given) if given else farm.model(_name(model)), model, as_json, url)


def note(
    model: What,
    text: Annotated[
        str | None,
        typer.Argument(metavar="[TEXT]", help="The note.", show_default=False),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the note.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Set the note of a version or a model in place of the one before, or show it."""
    farm = connect(url)
    if delete and text is not None:
        raise InvalidRequest("a note is set or deleted", hint="omit --delete, or the text")
    said = "" if delete else text
    found = farm.model(_name(model)) if said is None else farm.describe(model, note=said)
    _print(found, model, as_json, url)


def _name(model: str) -> str:
    return model.partition("@")[0]


def _changes(words: Iterable[str]) -> dict[str, str | None]:
    """``["team=vision", "old-"]`` → ``{"team": "vision", "old": None}``.

    Raises:
        InvalidRequest
    """
    found: dict[str, str | None] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and (not key.endswith("-") or key == "-"):
            raise InvalidRequest(
                f"{word!r} is neither a label nor one to remove",
                hint="KEY=VALUE sets a label, KEY- removes it: farm label digits@7 team=vision old-",
            )
        if equals:
            found[key] = value
        else:
            found[key.removesuffix("-")] = None
    return found


def _print(detail: ModelDetail, model: str, as_json: bool, url: str | None) -> None:
    name, at = detail.name, "@" in model
    one: ModelDetail | VersionView = detail
    if at:
        number = connect(url).version_of(model)[1]
        one = next((one for one in detail.versions if one.version == number), detail)
        name = f"{name}@{number}"
    if as_json:
        show.document({"labels": one.labels, "note": one.note})
        return
    show.line(f"{name}: {show.labels(one.labels) or 'no labels'}")
    if one.note:
        show.line(one.note)
