"""Which signing keys a client believes to be a farm's, and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from farm.client.pins import Pins
from farm.errors import InvalidRequest, SignatureRefused, SigningKeyUnknown
from farm.schemas.signing import SigningKeyView
from farm.signing import bundles, keys, statements
from farm.signing.bundles import Opened
from farm.signing.keys import PublicKey

VARIABLE = "FARM_PINNED_KEY"
_MOST_KEYS = 100
_MAX_KEY_BYTES = 16 * 1024

Confirm = Callable[
    [str, PublicKey], bool
]  #: given an address and its key, whether it is that farm's


@dataclass(frozen=True, kw_only=True)
class Signing:
    """What a user says about a farm's signing key."""

    key: str | None = None  #: its file, or its fingerprint; by default ``FARM_PINNED_KEY``
    accept_new: bool = False  #: believe a farm that was never met before
    confirm: Confirm | None = None  #: asks the user about such a farm


class Trust:
    """What one farm's signatures are verified with.

    Parameters:
        url: the farm's address.
        is_local: it is on this machine, so its key is believed on first contact.
        pins: the farms that this user knows.
        offered: asks the farm for its keys. Nothing in the answer is believed for being there.
    """

    def __init__(
        self,
        url: str,
        *,
        is_local: bool,
        pins: Pins,
        signing: Signing,
        offered: Callable[[], Sequence[SigningKeyView]],
    ) -> None:
        self._url = url
        self._offered = offered
        self._pins = pins
        self._given = signing.key or os.environ.get(VARIABLE, "").strip() or None
        self._accept_new = signing.accept_new or is_local
        self._confirm = signing.confirm
        self._known: list[PublicKey] | None = None

    def opened(self, bundle: bytes) -> Opened:
        """The farm's statement in a bundle.

        Raises:
            SignatureRefused: no key that is known to be the farm's has signed it.
            SigningKeyUnknown: nobody has said which key is the farm's.
        """
        if self._known is None:
            self._known = self._meet()
        named = bundles.signer_named(bundle)
        if named not in {key.id for key in self._known}:
            self._known = self._grown(self._asked(), self._known, named)
        return bundles.opened(bundle, self._known)

    def expects_signatures(self) -> bool:
        """Whether a farm that doesn't sign can't be this one."""
        return bool(self._given or self._pins.of(self._url))

    def pin(self, given: str | None) -> list[PublicKey]:
        """Believe this key, and those that it answers for, instead of what was known; None forgets the farm.

        Raises:
            InvalidRequest, SignatureRefused: it can't be read, or the farm doesn't have it.
        """
        if given is None:
            self._pins.pin(self._url, [])
            return []
        offered = self._asked()
        key = given_key(given, lambda: [_key(one) for one in offered])
        known = vouched(offered, [key])
        self._pins.pin(self._url, known)
        return known

    def _meet(self) -> list[PublicKey]:
        """The keys to begin with: the given one, those known, or those of a farm that may be believed."""
        if self._given is not None:
            return [given_key(self._given, lambda: [_key(one) for one in self._asked()])]
        known = self._pins.of(self._url)
        if known:
            return list(known)
        offered = [one for one in self._asked() if one.revoked_at is None]
        current = next((one for one in offered if one.current), None)
        if current is None:
            raise SignatureRefused(f"the farm at {self._url} shows no signing key of its own")
        self._check_believed(_key(current))
        believed = [_key(current)]
        return self._grown(offered, believed, None)

    def _asked(self) -> Sequence[SigningKeyView]:
        return self._offered()[:_MOST_KEYS]

    def _check_believed(self, key: PublicKey) -> None:
        if self._accept_new or (self._confirm is not None and self._confirm(self._url, key)):
            return
        raise SigningKeyUnknown(
            f"the signing key of {self._url} isn't known here: it says {key.fingerprint}",
            hint="compare that with what its operator sees (farm signing show), then: "
            f"farm signing trust {key.fingerprint} --url {self._url}; or pass --signing-key "
            f"{key.fingerprint}, or set {VARIABLE}. --accept-new-key believes it unseen",
        )

    def _grown(
        self, offered: Sequence[SigningKeyView], believed: list[PublicKey], named: str | None
    ) -> list[PublicKey]:
        """Believe the keys too that a believed one answers for, and remember them.

        Raises:
            SignatureRefused: the one that is named isn't among them.
        """
        grown = vouched(offered, believed)
        if named and named not in {key.id for key in grown}:
            raise SignatureRefused(
                f"the farm at {self._url} signs with sha256:{named}, and none of its keys that are known "
                f"here answers for that one: {', '.join(key.fingerprint for key in believed)}",
                hint="somebody may be pretending to be this farm. If its operator says that the key is new, "
                f"compare the fingerprints, then: farm signing trust sha256:{named} --url {self._url}",
            )
        if self._given is None and grown != self._pins.of(self._url):
            self._pins.pin(self._url, grown)
        return grown


def vouched(offered: Iterable[SigningKeyView], believed: Iterable[PublicKey]) -> list[PublicKey]:
    """The believed keys, and those of the offered ones that they answer for, directly or not."""
    grown = {key.id: key for key in believed}
    left = [one for one in offered if one.id not in grown and one.revoked_at is None]
    while True:
        more = [key for one in left if (key := _answered_for(one, grown)) is not None]
        if not more:
            return list(grown.values())
        grown |= {key.id: key for key in more}
        left = [one for one in left if one.id not in grown]


def _answered_for(offered: SigningKeyView, by: dict[str, PublicKey]) -> PublicKey | None:
    for by_id, voucher in offered.vouchers.items():
        if by_id in by:
            try:
                key = statements.key_in(bundles.opened(voucher.encode(), [by[by_id]]))
            except (SignatureRefused, InvalidRequest):
                continue
            if key.id == offered.id:
                return key
    return None


def given_key(given: str, offered: Callable[[], Iterable[PublicKey]]) -> PublicKey:
    """The key that a user names: its file, or the fingerprint of one that is offered.

    Raises:
        InvalidRequest: it is neither.
        SignatureRefused: no key with this fingerprint is offered.
    """
    fingerprint = keys.fingerprint_in(given)
    if fingerprint is None:
        try:
            with Path(given).expanduser().open("rb") as file:
                return keys.read(file.read(_MAX_KEY_BYTES))
        except OSError as err:
            raise InvalidRequest(
                f"{given!r} is neither a fingerprint nor a file that can be read: {err.strerror}",
                hint="use sha256:… or a file with the public key in PEM: farm signing show --pem",
            ) from err
    for key in offered():
        if key.id == fingerprint:
            return key
    raise SignatureRefused(
        f"there is no signing key sha256:{fingerprint} here",
        hint="compare the fingerprint with what the farm's operator sees: farm signing show",
    )


def _key(view: SigningKeyView) -> PublicKey:
    key = keys.read(view.public_key.encode())
    if key.id != view.id:
        raise SignatureRefused(f"the farm shows another key than sha256:{view.id} under that name")
    return key
