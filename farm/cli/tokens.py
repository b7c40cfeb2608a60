"""``farm tokens``: the tokens by which machines join as workers."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import complete, show
from farm.cli.options import Json, Url, Wide, again, connect, example
from farm.errors import InvalidRequest
from farm.specs import durations

if TYPE_CHECKING:
    from farm.schemas.tokens import TokenView

_PANEL = "Fleet"
_tokens = typer.Typer(
    help="Manage join tokens: by one, a machine becomes a worker. Without a command, list them.",
    invoke_without_command=True,
)


def register(app: typer.Typer) -> None:
    _tokens.callback(epilog=example("farm tokens"))(_without_command)
    text = "farm tokens create --worker --expires 1h --uses 4"
    _tokens.command("create", epilog=example(text))(create)
    _tokens.command("list", epilog=example("farm tokens list"))(list_tokens)
    _tokens.command("revoke", epilog=example("farm tokens revoke 7k2c9qd4mx"))(revoke)
    app.add_typer(_tokens, name="tokens", rich_help_panel=_PANEL)


def _without_command(
    ctx: typer.Context, wide: Wide = False, as_json: Json = False, url: Url = None
) -> None:
    if ctx.invoked_subcommand is None:
        list_tokens(wide, as_json, url)


def create(
    worker: Annotated[
        bool, typer.Option("--worker", help="Whoever has the token joins as a worker.")
    ] = False,
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="Lifetime: 1h, 30m, at most 30d.")
    ] = "1h",
    uses: Annotated[
        int, typer.Option("--uses", metavar="N", min=1, help="How many machines may join by it.")
    ] = 1,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Create a join token and print it. It is shown only once: the farm stores only its digest."""
    if not worker:
        raise InvalidRequest(
            "a join token must say what joins by it", hint="farm tokens create --worker"
        )
    with connect(url) as farm:
        made = farm.create_token(expires_in_s=durations.parse(expires), uses=uses)
        at = farm.url
    if as_json:
        show.document(made)
        return
    print(made.token)
    machines = "one machine" if made.uses == 1 else f"{made.uses} machines"
    print(
        f"It lets {machines} join until {show.minute(made.expires_at)}, and isn't shown again. There:\n"
        f"  FARM_JOIN_TOKEN=… farm worker --join {at}\n"
        f"To revoke it: {again(f'farm tokens revoke {made.id}', url)}",
        file=sys.stderr,
    )


def list_tokens(wide: Wide = False, as_json: Json = False, url: Url = None) -> None:
    """List the join tokens with their uses and expiry."""
    with connect(url) as farm:
        found = farm.tokens()
    if as_json:
        show.document(found)
        return
    rows = [
        (
            one.id,
            show.state(_state(one)),
            f"{one.used} of {one.uses}",
            show.minute(one.expires_at),
            show.ago(one.created_at),
            one.created_by,
        )
        for one in found
    ]
    headers = ("id", "state", "used", "expires", "created", "by")
    empty = f"no join tokens; create one: {again('farm tokens create --worker', url)}"
    show.table(headers, rows, keep=("id", "state"), empty=empty, wide=wide)


def _state(token: TokenView) -> str:
    if token.revoked_at is not None:
        return "revoked"
    if token.used >= token.uses:
        return "used"
    return "expired" if token.expires_at <= datetime.now(UTC) else "valid"


def revoke(
    token_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="The token's id, or the token itself.",
            autocompletion=complete.token_ids,
        ),
    ],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Revoke a join token. Machines that have joined by it stay: farm keys revoke ends them."""
    from farm.trust.credentials import join_id_of

    with connect(url) as farm:
        # With a leaked token at hand you don't know its id; only the id is sent.
        revoked = farm.revoke_token(join_id_of(token_id) or token_id)
    if as_json:
        show.document(revoked)
    else:
        show.line(f"the join token {revoked.id} is revoked; {revoked.used} joined by it")
