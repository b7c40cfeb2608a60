"""``farm keys`` and ``farm audit``: API keys, and the log of changes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from farm import installed
from farm.cli import complete, limits, show
from farm.cli.here import in_farm
from farm.cli.limits import Quotas
from farm.cli.options import Json, Url, Wide, again, connect, example, split
from farm.errors import FarmError, InvalidRequest, KeyNeeded, ScopeMissing
from farm.specs import durations

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from farm.database.session import Database
    from farm.schemas.keys import AuditEntry, KeyRequest, KeyView, NewKey
    from farm.settings import Settings

T = TypeVar("T")

_PANEL = "Fleet"
_keys = typer.Typer(help="Manage API keys.", no_args_is_help=True)

Local = Annotated[
    bool,
    typer.Option(
        "--local",
        help="Use the database in FARM_DATABASE_URL or FARM_HOME directly, which needs no key.",
    ),
]


def register(app: typer.Typer) -> None:
    text = "farm keys create --name ci --scope submit --expires 90d"
    _keys.command("create", epilog=example(text))(create)
    _keys.command("list", epilog=example("farm keys list"))(list_keys)
    _keys.command("revoke", epilog=example("farm keys revoke 7k2c9qd4mx"))(revoke)
    limits.register_for_keys(_keys)
    app.add_typer(_keys, name="keys", rich_help_panel=_PANEL)
    app.command(rich_help_panel=_PANEL, epilog=example("farm audit --action submit"))(audit)


def create(
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help="Scopes, repeated or comma-separated: read, submit and promote (both include read), "
            "admin (everything).",
            autocompletion=complete.scopes,
        ),
    ],
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Who or what the key is for.")
    ] = "key",
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", metavar="TIME", help="Lifetime: 90d, 12h, …; by default unlimited."
        ),
    ] = None,
    quota: Quotas = None,
    local: Local = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Create a key and print it. It is shown only once: the farm stores only its digest.

    For a farm's first key this writes to the database directly: run it where the API runs.
    """
    expires_in_s = None if expires is None else durations.parse(expires)
    request = _request(name, split(scope), expires_in_s, quota or ())
    made = _create(request, url, local=local)
    if as_json:
        show.document(made)
        return
    print(made.key)
    until = "forever" if made.expires_at is None else f"until {show.minute(made.expires_at)}"
    print(
        f"{made.name} ({', '.join(made.scopes)}) is valid {until}: set FARM_KEY to it.\n"
        f"It isn't shown again; to revoke it: {again(f'farm keys revoke {made.id}', url)}",
        file=sys.stderr,
    )


def _request(
    name: str, scopes: list[str], expires_in_s: int | None, quotas: Iterable[str]
) -> KeyRequest:
    from pydantic import ValidationError

    from farm.schemas.keys import KeyRequest
    from farm.schemas.problems import field_of
    from farm.specs import faults, limits

    given: dict[str, Any] = {"name": name, "scopes": scopes, "expires_in_s": expires_in_s}
    given["limits"] = limits.parse(quotas)
    try:
        return KeyRequest.model_validate(given)
    except ValidationError as err:
        said = "; ".join(f"{field_of(one['loc'])}: {faults.told(one)}" for one in err.errors())
        raise InvalidRequest(said, hint="see farm keys create --help") from err


def _create(request: KeyRequest, url: str | None, *, local: bool) -> NewKey:
    if local:
        return _locally(request)
    with connect(url) as farm:
        try:
            return farm.create_key(
                request.name,
                request.scopes,
                expires_in_s=request.expires_in_s,
                limits=request.limits.model_dump(exclude_none=True),
            )
        except (KeyNeeded, ScopeMissing) as err:
            if isinstance(err, ScopeMissing) or not _is_first():
                # Theirs is to run what has just failed.
                err.hint = (
                    "set FARM_KEY to an administrator's key; or, where the farm's database is: "
                    "farm keys create --local"
                )
                raise
    return _locally(request)


@installed.needs("server")
def _locally(request: KeyRequest) -> NewKey:
    from farm.schemas.keys import KeyView, NewKey
    from farm.trust import keys
    from farm.trust.callers import this_user

    def made(session: Session) -> NewKey:
        row, text = keys.create(
            session,
            name=request.name,
            scopes=request.scopes,
            expires_in_s=request.expires_in_s,
            limits=request.limits,
            by=this_user(),
        )
        return NewKey(key=text, **KeyView.model_validate(row).model_dump())

    return _in_database(made)


def _is_first() -> bool:
    """Whether this machine has the database of a farm that has no key yet."""
    try:
        with installed.needs("server"):
            from farm.trust import keys
        return _in_database(lambda session: not keys.live(session))
    except FarmError:
        return False


def _in_database(work: Callable[[Session], T]) -> T:
    """Do something directly in the database named by this machine's settings, in a unit of work."""

    def working(db: Database, _settings: Settings) -> T:
        with db.write() as session:
            return work(session)

    return in_farm(working)


def list_keys(
    local: Local = False, wide: Wide = False, as_json: Json = False, url: Url = None
) -> None:
    """List the keys with their scopes, expiry and last use."""
    found = _listed() if local else connect(url).keys()
    if as_json:
        show.document(found)
        return
    rows = [
        (
            one.id,
            one.name,
            show.state(_state(one)),
            ", ".join(one.scopes) if one.issuer is None else "as its tokens say",
            show.NONE if one.expires_at is None else show.minute(one.expires_at),
            show.NONE if one.last_used_at is None else show.ago(one.last_used_at),
            show.ago(one.created_at),
            one.created_by,
        )
        for one in found
    ]
    headers = ("id", "name", "state", "scopes", "expires", "used", "created", "by")
    empty = f"no keys; create one: {again('farm keys create --scope admin', url)}"
    show.table(headers, rows, keep=("id", "name"), empty=empty, wide=wide)


@installed.needs("server")
def _listed() -> list[KeyView]:
    from farm.schemas.keys import KeyView
    from farm.trust import keys

    return _in_database(
        lambda session: [KeyView.model_validate(row) for row in keys.page(session, limit=1000)]
    )


def _state(key: KeyView) -> str:
    if key.revoked_at is not None:
        return "revoked"
    is_over = key.expires_at is not None and key.expires_at <= datetime.now(UTC)
    return "expired" if is_over else "valid"


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, or the key itself.")],
    local: Local = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Revoke a key. Takes effect everywhere within a second."""
    from farm.trust.credentials import id_of

    # With a leaked key at hand you don't know its id; only the id is sent.
    key_id = id_of(key_id) or key_id
    revoked = _revoked(key_id) if local else connect(url).revoke_key(key_id)
    if as_json:
        show.document(revoked)
    else:
        show.line(f"{revoked.name} ({revoked.id}) is revoked")


@installed.needs("server")
def _revoked(key_id: str) -> KeyView:
    from farm.schemas.keys import KeyView
    from farm.trust import keys
    from farm.trust.callers import this_user

    def done(session: Session) -> KeyView:
        row = keys.get(session, key_id)
        if row.revoked_at is None:
            # With access to the database no key is needed to create another.
            keys.end(session, row, by=this_user())
        return KeyView.model_validate(row)

    return _in_database(done)


def audit(
    key: Annotated[
        str | None, typer.Option("--key", metavar="ID", help="Only changes made with this key.")
    ] = None,
    action: Annotated[
        str | None,
        typer.Option(
            "--action", metavar="ACTION", help="Only this action: submit, cancel, gc, key.create, …"
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="Number of changes to show.")
    ] = 50,
    wide: Wide = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show who changed what, from where and when, newest first. The log is append-only."""
    found = connect(url).audit(key=key, action=action, limit=limit)
    if as_json:
        show.document(found)
        return
    headers = ("at", "action", "object", "who", "details", "key", "from")
    keep = ("at", "action", "object")
    show.table(
        headers, map(_entry, found), keep=keep, empty="no changes yet", wide=wide, prose="details"
    )


def _entry(one: AuditEntry) -> tuple[str, ...]:
    who = f"{one.who} ({one.label})" if one.label else one.who
    details = ", ".join(
        f"{name} {_said(value)}" for name, value in sorted((one.details or {}).items())
    )
    return (
        one.at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        one.action,
        one.object,
        who,
        details or show.NONE,
        one.key_id or show.NONE,
        one.address or show.NONE,
    )


def _said(value: object) -> str:
    """A detail in words, no more than three of many; Postgres keeps no order of names."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"{name}={_said(one)}" for name, one in sorted(value.items())]
    if isinstance(value, list):
        shown = ", ".join(map(_said, value[:3]))
        return (shown + (f" and {len(value) - 3} more" if len(value) > 3 else "")) or show.NONE
    return show.NONE if value is None else str(value)
