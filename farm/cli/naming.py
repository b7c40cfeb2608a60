"""The model's name: asked for if nothing tells it, and explained if it isn't the file's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from farm.cli import show
from farm.errors import NameMissing

if TYPE_CHECKING:
    from farm.client import Build

R = TypeVar("R")


def named(submit: Callable[[str | None], R], name: str | None, *, as_json: bool) -> R:
    """Submit, and ask for the name if it is missing and somebody is there to answer.

    Raises:
        NameMissing
        FarmError: as ``submit`` does.
    """
    try:
        return submit(name)
    except NameMissing as err:
        if as_json or not sys.stdin.isatty():
            raise
        # On stderr: stdout is for the command's result.
        print(f"{err.detail}.", file=sys.stderr)
    return submit(typer.prompt("Its name", value_proc=_valid, err=True))


def explain(build: Build) -> None:
    """Say what was taken of a folder, and where the name comes from, if that isn't evident."""
    if build.taken is not None:
        show.line(f"submitted {build.taken}")
    if build.named_after is not None:
        show.line(f"named {build.view.model} after {build.named_after}; --name chooses another")


def _valid(answer: str) -> str:
    from pydantic import TypeAdapter, ValidationError

    from farm.schemas.base import Name

    try:
        return str(TypeAdapter(Name).validate_python(answer.strip()))
    except ValidationError:
        raise typer.BadParameter(
            "a name has letters, digits, '.', '_' and '-', at most 100, and begins with one of the first two"
        ) from None
