"""``farm signing``: the keys that sign engines, where the farm runs and where it is pulled from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli import show
from farm.cli.here import in_farm
from farm.cli.options import Json, Url, connect, example
from farm.errors import InvalidRequest, NotFound

if TYPE_CHECKING:
    from farm.database.session import Database
    from farm.schemas.signing import SigningKeyView
    from farm.settings import Settings


_signing = typer.Typer(help="Manage the keys that sign engines.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    _signing.command("show", epilog=example("farm signing show --pem"))(show_keys)
    _signing.command("trust", epilog=example("farm signing trust sha256:4f0c…"))(trust)
    _signing.command("forget", epilog=example("farm signing forget"))(forget)
    _signing.command("rotate", epilog=example("farm signing rotate"))(rotate)
    _signing.command("vouch", epilog=example("farm signing vouch next.pem"))(vouch)
    app.add_typer(_signing, name="signing", rich_help_panel="Fleet")


def show_keys(
    pem: Annotated[
        bool, typer.Option("--pem", help="Print the current public key in PEM, and nothing else.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show the keys that the farm signs with, or has signed with, by their fingerprints."""
    found = connect(url).signing_keys()
    if pem:
        print(_current(found).public_key, end="")
        return
    if as_json:
        show.document(found)
        return
    rows = [
        (f"sha256:{one.id}", show.state(_state(one)), show.ago(one.created_at)) for one in found
    ]
    empty = "this farm has no signing key: its engines are unsigned; to make one, where it runs: "
    show.table(
        ("fingerprint", "state", "created"),
        rows,
        keep=("fingerprint",),
        empty=f"{empty}farm signing rotate",
    )


def _current(found: list[SigningKeyView]) -> SigningKeyView:
    for one in found:
        if one.current:
            return one
    raise NotFound(
        "this farm has no signing key", hint="make one where the API runs: farm signing rotate"
    )


def _state(one: SigningKeyView) -> str:
    if one.revoked_at is not None:
        return "compromised"
    return "current" if one.current else "earlier"


def trust(
    key: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FINGERPRINT", help="The farm's public key, as its operator has told you."
        ),
    ],
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Believe that this is the farm's signing key from now on, instead of what was known before."""
    farm = connect(url)
    known = farm.trust_signing_key(key)
    fingerprints = [one.fingerprint for one in known]
    if as_json:
        show.document({"farm": farm.url, "keys": fingerprints})
        return
    show.line(f"{farm.url} is known by {', '.join(fingerprints)}")


def forget(as_json: Json = False, url: Url = None) -> None:
    """Forget the farm's signing keys, as if you had never pulled from it."""
    farm = connect(url)
    farm.trust_signing_key(None)
    if as_json:
        show.document({"farm": farm.url, "keys": []})
        return
    show.line(f"{farm.url} isn't known any more")


def rotate(
    compromised: Annotated[
        bool,
        typer.Option(
            "--compromised",
            help="The present key may have leaked: it doesn't answer for the new one, and what it signed "
            "is signed again. Clients have to be told the new fingerprint.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a new signing key, or the first one. Run it where the API runs.

    The present key signs the new one, so clients that know it follow. What it has signed stays valid.
    The key's file is FARM_SIGNING_KEY, by default signing/key.pem in FARM_HOME.
    """
    made, again_count = in_farm(lambda db, settings: _rotated(db, settings, compromised))
    if as_json:
        show.document({"key": made, "signed_again": again_count})
        return
    show.line(f"engines are signed by {made} from now on")
    if again_count:
        show.line(f"{again_count} engines are signed again within minutes")


def _rotated(db: Database, settings: Settings, compromised: bool) -> tuple[str, int]:
    from farm.trust import audit, signatory
    from farm.trust.callers import this_user

    if settings.signing_command:
        raise InvalidRequest(
            "a command signs here, and this can't make its key",
            hint="make the next key in your key service, then: farm signing vouch NEXT_PUBLIC.pem",
        )
    made, count = signatory.rotate(db, settings, compromised=compromised)
    with db.write() as session:
        details = {"compromised": True} if compromised else {}
        audit.record(session, this_user(), "signing.rotate", made.id, **details)
    return made.fingerprint, count


def vouch(
    public_key: Annotated[
        Path, typer.Argument(metavar="FILE", help="The next public key, in PEM.")
    ],
    as_json: Json = False,
) -> None:
    """Let the present signing key answer for the next one, before the settings name that one.

    For keys that a key service holds; farm signing rotate does it for a key in a file.
    """
    key = in_farm(lambda db, settings: _vouched(db, settings, public_key))
    if as_json:
        show.document({"key": key})
        return
    show.line(f"clients accept {key} too: have FARM_SIGNING_COMMAND and its public key name it now")


def _vouched(db: Database, settings: Settings, public_key: Path) -> str:
    from farm.errors import Unsigned
    from farm.signing import keys
    from farm.trust import audit, signatory
    from farm.trust.callers import this_user

    signer = signatory.signer_of(settings)
    if signer is None:
        raise Unsigned
    key = keys.read(public_key.read_bytes())
    signatory.vouch(db, signer, key)
    with db.write() as session:
        audit.record(session, this_user(), "signing.vouch", key.id)
    return key.fingerprint
