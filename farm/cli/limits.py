"""``farm whoami`` and ``farm keys limits``: what keys may use, and what they use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, connect, example
from farm.specs import limits

if TYPE_CHECKING:
    from farm.schemas.keys import LimitView

_FORM = "NAME=NUMBER"
_NAMES = ", ".join(one.option for one in limits.Quota)

Quotas = Annotated[
    list[str] | None,
    typer.Option(
        "--quota",
        metavar=_FORM,
        help=f"A limit, repeated or comma-separated: {_NAMES}; unlimited for none, whatever the farm's "
        "default is.",
        autocompletion=complete.quotas,
    ),
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel="Fleet", epilog=example("farm whoami"))(whoami)


def register_for_keys(app: typer.Typer) -> None:
    text = "farm keys limits 7k2c9qd4mx builds=5 stored-bytes=50GB gpu-minutes-day=default"
    app.command("limits", epilog=example(text))(of_key)


def whoami(as_json: Json = False, url: Url = None) -> None:
    """Show your key, what it allows, and what it uses of its limits."""
    me = connect(url).me()
    if as_json:
        show.document(me)
        return
    what = "no key" if me.key is None else f"{me.name} ({me.key})"
    show.line(f"{what}: {', '.join(me.scopes)}")
    _show(me.limits)
    for warning in me.warnings:
        show.note(f"warning: {warning}")


def of_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, or the key itself.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar=f"[{_FORM}]…",
            help=f"Limits to set: {_NAMES}. unlimited for none, default for the farm's.",
            autocompletion=complete.quotas,
        ),
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show a key's limits and what it uses, or change them. What has begun goes on."""
    from farm.trust.credentials import id_of

    given = limits.parse(changes or ())
    farm, key_id = connect(url), id_of(key_id) or key_id
    found = farm.set_key_limits(key_id, **given) if given else farm.key_limits(key_id)
    if as_json:
        show.document(found)
        return
    _show(found.limits)


def _show(found: Sequence[LimitView]) -> None:
    rows = [
        (
            one.quota.option,
            limits.number(one.quota, one.used),
            limits.UNLIMITED if one.limit is None else limits.number(one.quota, one.limit),
            limits.number(one.quota, one.reserved) if one.reserved else show.NONE,
            show.NONE if one.resets_at is None else show.minute(one.resets_at),
        )
        for one in found
    ]
    show.table(
        ("limit", "used", "may use", "reserved", "begins again"),
        rows,
        keep=("limit", "used", "may use"),
    )
