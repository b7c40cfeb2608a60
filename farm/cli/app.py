"""The application that the commands are registered with; it reports errors to the user."""

from __future__ import annotations

import errno
import inspect
import json
import sys
from http import HTTPStatus
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from farm import __version__
from farm.cli import exits
from farm.errors import FarmError, InvalidRequest

_JSON = "--json"


class FarmGroup(TyperGroup):
    """Commands whose errors are printed to stderr: as text, or with ``--json`` as a problem document."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            _fill_lines(command)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        as_json = _JSON in args
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as err:
            _refuse_usage(err, as_json=as_json)

    def invoke(self, ctx: Any) -> Any:
        # What comes before a command's name isn't the command's.
        as_json = _JSON in ctx.args
        try:
            return super().invoke(ctx)
        except typer.TyperException as err:
            _refuse_usage(err, as_json=as_json)
        except typer.Abort as err:
            if not as_json:
                raise
            tell(FarmError("aborted: nothing was done"), as_json=True)
            raise typer.Exit(exits.FAILED) from err
        except FarmError as err:
            tell(err, as_json=as_json)
            raise typer.Exit(exits.of(err)) from err
        except ValidationError as err:
            if err.title != "Settings":
                raise
            tell(_bad_settings(err), as_json=as_json)
            raise typer.Exit(exits.USAGE) from err
        except OSError as err:
            if err.errno == errno.EPIPE:
                raise
            tell(FarmError(f"system error: {err}"), as_json=as_json)
            raise typer.Exit(exits.FAILED) from err


def _refuse_usage(err: typer.TyperException, *, as_json: bool) -> NoReturn:
    """End with an error of the command line's parser; without ``--json`` it shows that itself."""
    if not as_json:
        raise err
    ctx = getattr(err, "ctx", None)
    command = "farm" if ctx is None else ctx.command_path
    tell(InvalidRequest(err.format_message(), hint=f"see {command} --help"), as_json=True)
    raise typer.Exit(err.exit_code) from err


def _fill_lines(command: Any) -> None:
    """Have the terminal's width break the lines of a command's help, not the source's."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(one.split()) for one in paragraphs)
    for inner in getattr(command, "commands", {}).values():
        _fill_lines(inner)


def _bad_settings(err: ValidationError) -> InvalidRequest:
    from farm.specs import faults

    said = "; ".join(
        f"FARM_{str(one['loc'][0]).upper()}: {faults.told(one)}" if one["loc"] else faults.told(one)
        for one in err.errors()
    )
    return InvalidRequest(
        f"invalid setting: {said}",
        hint="docs/reference/settings.md lists the valid values",
    )


def tell(err: FarmError, *, as_json: bool) -> None:
    """Print an error and its hint to stderr."""
    if as_json:
        print(json.dumps(problem(err), ensure_ascii=False), file=sys.stderr)
        return
    print(f"error: {err.detail}", file=sys.stderr)
    if err.hint:
        print(f"hint: {err.hint}", file=sys.stderr)


def problem(err: FarmError) -> dict[str, Any]:
    """An error in the shape of RFC 9457, as the API renders it."""
    known = err.status in set(HTTPStatus)  # a proxy may have answered 520
    return {
        "type": "about:blank",
        "title": HTTPStatus(err.status).phrase if known else "Unknown Status",
        "status": err.status,
        "code": err.code,
        "detail": err.detail,
        "hint": err.hint,
    }


app = typer.Typer(
    name="farm",
    cls=FarmGroup,
    epilog=exits.EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        print(f"engine-farm {__version__}")
        raise typer.Exit


@app.callback()
def farm(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Build TensorRT engines: submit a model once, pull the right engine for every GPU."""
