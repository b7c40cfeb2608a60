"""An OpenID Connect issuer's public keys: fetched, kept, and fetched again when they change.

An unknown key has them fetched anew, but rarely: anyone can make up its name. While the issuer doesn't
answer, what was fetched serves on for a while.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey

from farm.errors import IssuerUnavailable
from farm.specs.oidc import Oidc, is_here, is_trustworthy

log = logging.getLogger(__name__)

Key = RSAKey | ECKey | OKPKey
_TYPES = (RSAKey, ECKey, OKPKey)
#: Keys are asked for again after so long.
_FRESH_S = 600.0
#: While the issuer doesn't answer they serve for so long.
_STALE_S = 4 * 3600.0
#: A token with an unknown key has them asked for no more often.
_UNKNOWN_AGAIN_S = 15.0
#: While it doesn't answer, known keys serve for so long before it is asked again.
_ASK_AGAIN_S = 30.0
_FAIL_AGAIN_S = 3.0
_TIMEOUT_S = 5.0
_LONGEST_BYTES = 2**20
_MOST_KEYS = 100
_LEAST_RSA_BITS = 2048


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What the issuer signs with."""

    by_id: Mapping[str, Key] = field(default_factory=dict)
    nameless: tuple[Key, ...] = ()

    def get(self, key_id: str | None) -> Key | None:
        """The key with this id; without one, the only key."""
        if key_id is not None:
            return self.by_id.get(key_id)
        every = [*self.by_id.values(), *self.nameless]
        return every[0] if len(every) == 1 else None


class Issuer:
    """Looks up an issuer's keys."""

    def __init__(self, oidc: Oidc) -> None:
        self._oidc = oidc
        self._keys: Keys | None = None
        self._fetched_s = self._fresh_until_s = 0.0
        self._tried_s: float | None = None
        self._failed: tuple[float, str] | None = None
        self._fetching = threading.Lock()

    def known(self, key_id: str | None) -> Key | None:
        """The key, if known without asking the issuer; otherwise use ``look``."""
        if self._keys is None or time.monotonic() > self._fresh_until_s:
            return None
        return self._keys.get(key_id)

    def is_unknown(self, key_id: str | None) -> bool:
        """Whether the issuer has been asked about such a key just now."""
        lately = self._tried_s is not None and self._age_s(self._tried_s) < _UNKNOWN_AGAIN_S
        return self._keys is not None and lately and self._keys.get(key_id) is None

    def look(self, key_id: str | None) -> Key | None:
        """The key, or None if the issuer doesn't have it. Asks the issuer.

        Raises:
            IssuerUnavailable
        """
        with self._fetching:
            found = self.known(key_id)
            if found is None and not self.is_unknown(key_id):
                found = self._refreshed(key_id)
        return found

    def _age_s(self, since: float) -> float:
        return time.monotonic() - since

    def _refreshed(self, key_id: str | None) -> Key | None:
        why = self._refresh()
        found = self._keys.get(key_id) if self._keys is not None else None
        if why is None:
            return found
        if found is None or self._age_s(self._fetched_s) > _STALE_S:
            raise IssuerUnavailable(
                f"the issuer of tokens, {self._oidc.issuer}, doesn't give its keys: {why}"
            )
        self._fresh_until_s = time.monotonic() + _ASK_AGAIN_S
        return found

    def _refresh(self) -> str | None:
        """Fetch the keys; return why that failed."""
        if self._failed is not None and self._age_s(self._failed[0]) < _FAIL_AGAIN_S:
            return self._failed[1]
        try:
            self._keys = self._fetch()
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as err:
            told = (f"{type(err).__name__}: {err}" if str(err) else type(err).__name__)[:300]
            self._failed = time.monotonic(), told
            log.warning("the issuer %s: %s", self._oidc.issuer, told)
            return told
        self._fetched_s = self._tried_s = time.monotonic()
        self._fresh_until_s, self._failed = self._fetched_s + _FRESH_S, None
        return None

    def _fetch(self) -> Keys:
        """The issuer's keys now.

        Raises:
            HTTPError, InvalidURL, ValueError
        """
        url = self._oidc.jwks_url or self._discovered()
        found = _read(url).get("keys")
        if not isinstance(found, list):
            raise ValueError(f"{url} has no keys")
        return _keys(found[:_MOST_KEYS])

    def _discovered(self) -> str:
        url = f"{self._oidc.issuer.rstrip('/')}/.well-known/openid-configuration"
        document = _read(url)
        if document.get("issuer") != self._oidc.issuer:
            raise ValueError(f"{url} is of another issuer: {str(document.get('issuer'))[:200]!r}")
        found = document.get("jwks_uri")
        if not isinstance(found, str) or not is_trustworthy(found):
            raise ValueError(f"{url} names no jwks_uri that is reached by https")
        return found


def _read(url: str) -> dict[str, Any]:
    """A JSON object, within limits of size and time."""
    until, body = time.monotonic() + _TIMEOUT_S, bytearray()
    is_local = is_here(urlsplit(url).hostname or "")
    with (
        httpx2.Client(timeout=_TIMEOUT_S, trust_env=not is_local) as client,
        client.stream("GET", url, headers={"Accept": "application/json"}) as answer,
    ):
        if answer.status_code != 200:
            raise ValueError(f"{url} answered {answer.status_code}")
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > _LONGEST_BYTES or time.monotonic() > until:
                raise ValueError(f"{url} answers too much, or too slowly")
    try:
        found = json.loads(bytes(body))
    except RecursionError as err:
        raise ValueError(f"{url} is nested too deeply") from err
    if not isinstance(found, dict):
        raise ValueError(f"{url} isn't a JSON object")
    return found


def _keys(found: Iterable[Any]) -> Keys:
    """Those among these that can verify signatures; one that can't be read is no reason to take none."""
    by_id: dict[str, Key] = {}
    nameless = []
    for one in found:
        key = _key(one)
        if key is None:
            continue
        key_id = one.get("kid")
        if isinstance(key_id, str):
            by_id.setdefault(key_id, key)
        else:
            nameless.append(key)
    return Keys(by_id=by_id, nameless=tuple(nameless))


def _key(one: Any) -> Key | None:
    if not isinstance(one, dict) or one.get("use", "sig") != "sig":
        return None
    try:
        key = JWKRegistry.import_key(one)
        # Symmetric ones sign, too; and short ones are no keys.
        if not isinstance(key, _TYPES):
            return None
        if isinstance(key, RSAKey) and key.public_key.key_size < _LEAST_RSA_BITS:
            return None
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return key
