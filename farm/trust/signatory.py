"""Signs engines with the farm's key, and its keys with each other.

Only the API's processes sign: workers may be anybody's machines, and hold no key.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from farm.database.base import now
from farm.database.session import Database
from farm.database.tables import AliasStatement, EngineSignature, SigningKeyRow, SigningVoucher
from farm.errors import Conflict, SigningFailed, Unsigned
from farm.registry import catalog, signed
from farm.schemas.signing import SignatureFormat, SigningKeyView
from farm.settings import Settings
from farm.signing import bundles, keys, moves, signers, statements
from farm.signing.bundles import MAX_BUNDLE_BYTES
from farm.signing.keys import PublicKey
from farm.signing.moves import Moved
from farm.signing.signers import CommandSigner, FileSigner, Signer

log = logging.getLogger(__name__)

_MAX_PUBLIC_KEY_BYTES = 4096


class Signatory:
    """The farm's signing key, and what it has signed."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._known: set[str] = set()  #: keys that the database has, and that answer for the others

    def signer(self) -> Signer | None:
        """The farm's key, read anew: `farm signing rotate` replaces it. None without one.

        Raises:
            SigningFailed
        """
        return signer_of(self._settings)

    def bundle_of(self, engine_id: str, format: SignatureFormat = SignatureFormat.ENGINE) -> bytes:
        """An engine's bundle; signed now if it isn't yet.

        Raises:
            NotFound
            Unsigned: the farm has no key.
            SigningFailed
        """
        with self._db.read() as session:
            catalog.engine_row(session, engine_id)
            bundle = signed.bundle_of(session, engine_id, format)
        if bundle is not None:
            return bundle
        self.sign(engine_id)
        with self._db.read() as session:
            bundle = signed.bundle_of(session, engine_id, format)
        if bundle is None:  # a key was called compromised in between
            raise SigningFailed(f"engine {engine_id} lost its signature", hint="ask again")
        return bundle

    def sign(self, engine_id: str) -> None:
        """Sign an engine, unless it is signed.

        Raises:
            NotFound, Unsigned, SigningFailed
        """
        signer = self.signer()
        if signer is None:
            raise Unsigned
        self._introduce(signer)
        with self._db.read() as session:
            of_engine, of_file = signed.statements_of(session, engine_id, signer.key)
        # Not in a transaction: a key service takes its time.
        engine, model = bundles.sealed(of_engine, signer), bundles.sealed(of_file, signer)
        if len(engine) > MAX_BUNDLE_BYTES:
            raise SigningFailed(f"what is to be signed of engine {engine_id} is too large")
        try:
            with self._db.write() as session:
                _check_trusted(session, signer.key)
                signed.keep(session, engine_id, signer.key, engine, model)
        except IntegrityError:
            log.info("engine %s was signed, or deleted, by another process", engine_id)

    def sealed_move(self, moved: Moved, signer: Signer) -> bytes:
        """The bundle of an alias's move.

        Raises:
            SigningFailed
        """
        self._introduce(signer)
        return bundles.sealed(moves.of_move(moved, now().isoformat()), signer)

    def _introduce(self, signer: Signer) -> None:
        """Have the database know this key, and the key answer for the farm's others."""
        if signer.key.id not in self._known:
            introduce(self._db, signer)
            self._known.add(signer.key.id)

    def keys(self) -> list[SigningKeyView]:
        """All keys of the farm, newest first.

        Raises:
            SigningFailed
        """
        signer = self.signer()
        if signer is not None:
            self._introduce(signer)
        with self._db.read() as session:
            return views(session, signer.key if signer else None)


def signer_of(settings: Settings) -> Signer | None:
    """The key that these settings name; None if they name none.

    Raises:
        SigningFailed
    """
    if settings.signing_command:
        assert settings.signing_public_key is not None
        try:
            with settings.signing_public_key.open("rb") as file:
                key = keys.read(file.read(_MAX_PUBLIC_KEY_BYTES))
        except OSError as err:
            raise SigningFailed(f"can't read FARM_SIGNING_PUBLIC_KEY: {err}") from err
        return CommandSigner(key=key, command=settings.signing_command)
    if settings.signing_key is None and not settings.signing_key_file.exists():
        return None
    return FileSigner.read(settings.signing_key_file, password_of(settings))


def password_of(settings: Settings) -> bytes | None:
    """The password of the key's file.

    Raises:
        SigningFailed
    """
    if settings.signing_password_file is None:
        return None
    try:
        return settings.signing_password_file.read_bytes().rstrip(b"\r\n")
    except OSError as err:
        raise SigningFailed(f"can't read FARM_SIGNING_PASSWORD_FILE: {err}") from err


def introduce(db: Database, signer: Signer) -> None:
    """Have the database know a key, and let it answer for the farm's others: they have signed engines.

    Raises:
        SigningFailed: it can't sign, or was called compromised.
    """
    with db.read() as session:
        _check_trusted(session, signer.key)
        row = session.get(SigningKeyRow, signer.key.id)
        done = set(
            session.scalars(
                select(SigningVoucher.key_id).where(SigningVoucher.by_id == signer.key.id)
            )
        )
        others = [
            PublicKey(id=one.id, pem=one.pem)
            for one in session.scalars(select(SigningKeyRow))
            if one.id not in {*done, signer.key.id} and one.revoked_at is None
        ]
    made = {one.id: bundles.sealed(statements.of_key(one), signer) for one in others}
    if row is not None and not made:
        return
    try:
        with db.write() as session:
            _know(session, signer.key)
            for key_id, bundle in made.items():
                session.add(
                    SigningVoucher(key_id=key_id, by_id=signer.key.id, bundle=bundle.decode())
                )
    except IntegrityError:
        log.info("the signing key %s was introduced by another process", signer.key.fingerprint)


def vouch(db: Database, signer: Signer, key: PublicKey) -> None:
    """Let a key of the farm answer for its next one.

    Raises:
        SigningFailed
        Conflict: they are the same.
    """
    if key.id == signer.key.id:
        raise Conflict("this is the key that signs now", hint="make another one")
    introduce(db, signer)
    bundle = bundles.sealed(statements.of_key(key), signer)
    with db.write() as session:
        _know(session, key)
        if session.get(SigningVoucher, (key.id, signer.key.id)) is None:
            row = SigningVoucher(key_id=key.id, by_id=signer.key.id, bundle=bundle.decode())
            session.add(row)


def revoke(session: Session, key_id: str) -> int:
    """Call a key compromised: what it signed is signed again by the next one. Return how many engines."""
    row = session.get_one(SigningKeyRow, key_id)
    row.revoked_at = now()
    signed_by_it = signed.count_signed_by(session, key_id)
    either = (SigningVoucher.by_id == key_id) | (SigningVoucher.key_id == key_id)
    session.execute(delete(SigningVoucher).where(either))
    session.execute(delete(EngineSignature).where(EngineSignature.key_id == key_id))
    session.execute(delete(AliasStatement).where(AliasStatement.key_id == key_id))
    return signed_by_it


def views(session: Session, current: PublicKey | None) -> list[SigningKeyView]:
    """The farm's keys, newest first, each with what the others say of it."""
    rows = session.scalars(select(SigningKeyRow).order_by(SigningKeyRow.created_at.desc())).all()
    vouchers: Sequence[SigningVoucher] = session.scalars(select(SigningVoucher)).all()
    return [
        SigningKeyView(
            id=row.id,
            public_key=row.pem,
            current=current is not None and row.id == current.id,
            created_at=row.created_at,
            revoked_at=row.revoked_at,
            vouchers={one.by_id: one.bundle for one in vouchers if one.key_id == row.id},
        )
        for row in rows
    ]


def _check_trusted(session: Session, key: PublicKey) -> None:
    row = session.get(SigningKeyRow, key.id)
    if row is not None and row.revoked_at is not None:
        raise SigningFailed(
            f"the signing key {key.fingerprint} was called compromised",
            hint="make another: farm signing rotate",
        )


def _know(session: Session, key: PublicKey) -> None:
    if session.get(SigningKeyRow, key.id) is None:
        session.add(SigningKeyRow(id=key.id, pem=key.pem))
        session.flush()


def rotate(db: Database, settings: Settings, *, compromised: bool) -> tuple[PublicKey, int]:
    """Replace the key in its file, or make the first one. Return it, and how many engines it signs again.

    Parameters:
        compromised: the present key doesn't answer for the new one, and nothing it signed stays.

    Raises:
        SigningFailed
    """
    present = signer_of(settings) if settings.signing_key_file.exists() else None
    # Beside the present one until clients can know it: a crash in between changes nothing.
    file = settings.signing_key_file
    coming = file.with_name(f"{file.name}.next")
    made = signers.make(coming, password_of(settings))
    again = 0
    if present is not None and compromised:
        with db.write() as session:
            _know(session, present.key)
            again = revoke(session, present.key.id)
    elif present is not None:
        vouch(db, present, made.key)
    coming.replace(file)
    introduce(db, made)
    return made.key, again


def make(settings: Settings) -> FileSigner:
    """Make the key that these settings name, in its file.

    Raises:
        SigningFailed
    """
    return signers.make(settings.signing_key_file, password_of(settings))
