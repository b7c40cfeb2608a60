"""Bearer tokens of an OpenID Connect issuer: JWTs, signed by its private keys.

Everything in a token is hostile until its signature is verified, and what it claims is checked after. A token
is refused for one reason, which is told without showing the token.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from joserfc import jws
from joserfc.errors import (
    ExpiredTokenError,
    InvalidClaimError,
    JoseError,
    MissingClaimError,
)
from joserfc.jwt import JWTClaimsRegistry

from farm.errors import TokenRefused
from farm.specs import texts
from farm.specs.oidc import Oidc
from farm.specs.scopes import Scope
from farm.trust.issuer import Key

_LONGEST = 16 * 2**10
_LONGEST_HEADER = 4096
_TYPES = ("jwt", "at+jwt", "application/at+jwt")
_LONGEST_SUBJECT, _LONGEST_NAME = 255, 100
_LATEST_S = 2**37  #: in the year 6325


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whom a token is for, and what it allows."""

    issuer: str
    subject: str
    name: str
    scopes: frozenset[Scope]
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A token whose signature is yet to be verified: it says which key does."""

    text: str
    algorithm: str
    key_id: str | None


def is_one(text: str) -> bool:
    """Whether this is a token rather than a key: those have no dots."""
    return "." in text


def opened(text: str, oidc: Oidc) -> Sealed:
    """A token as far as it can be read without its issuer's keys.

    Raises:
        TokenRefused
    """
    if len(text) > _LONGEST:
        raise TokenRefused(f"the token is longer than {_LONGEST} characters")
    parts = text.split(".")
    if len(parts) == 5:
        raise TokenRefused(
            "the token is encrypted (JWE)", hint="have the issuer sign it and not encrypt it"
        )
    if len(parts) != 3:
        raise TokenRefused("the token isn't a JWT: it has no three parts")
    header = _document(_decoded(parts[0], "header"), "header")
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if algorithm not in oidc.algorithms:
        raise TokenRefused(
            f"the token is signed by {_short(algorithm)}, and the farm accepts {', '.join(oidc.algorithms)}"
        )
    if key_id is not None and not isinstance(key_id, str):
        raise TokenRefused("the token's kid isn't a text")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenRefused(f"the token's typ is {_short(kind)}: it isn't for this")
    if "crit" in header or "b64" in header:
        raise TokenRefused("the token demands extensions (crit) that the farm doesn't have")
    return Sealed(text=text, algorithm=str(algorithm), key_id=key_id)


def unknown_key(sealed: Sealed, oidc: Oidc) -> TokenRefused:
    """The error for a token that is signed by a key which the issuer doesn't have."""
    if sealed.key_id is None:
        return TokenRefused(
            "the token doesn't say which of the issuer's keys signed it (kid), and it has several"
        )
    return TokenRefused(
        f"the token is signed by the key {_short(sealed.key_id)}, which {oidc.issuer} doesn't have"
    )


def verified(sealed: Sealed, key: Key, oidc: Oidc) -> Identity:
    """Whom a token is for.

    Raises:
        TokenRefused
    """
    registry = jws.JWSRegistry(algorithms=[sealed.algorithm], strict_check_header=False)
    registry.max_header_length = _LONGEST_HEADER
    try:
        if key.as_dict(private=False).get("alg", sealed.algorithm) != sealed.algorithm:
            raise TokenRefused("the token's key is for another algorithm")
        found = jws.deserialize_compact(
            sealed.text, key, algorithms=[sealed.algorithm], registry=registry
        )
    except (JoseError, ValueError) as err:
        raise TokenRefused("the token's signature isn't its issuer's") from err
    claims = _document(found.payload or b"", "claims")
    _check(claims, oidc)
    subject = claims["sub"]
    if len(subject) > _LONGEST_SUBJECT or texts.fault(subject):
        raise TokenRefused("the token's sub is too long, or has control characters")
    name = claims.get(oidc.name_claim)
    return Identity(
        issuer=oidc.issuer,
        subject=subject,
        name=_name(name if isinstance(name, str) and name.strip() else subject),
        scopes=oidc.scopes(claims),
        expires_at=datetime.fromtimestamp(min(claims["exp"], _LATEST_S), UTC),
    )


def _check(claims: Mapping[str, Any], oidc: Oidc) -> None:
    registry = JWTClaimsRegistry(
        now=int(time.time()),
        leeway=oidc.leeway_s,
        iss={"essential": True, "value": oidc.issuer},
        aud={"essential": True, "value": oidc.audience},
        sub={"essential": True},
        exp={"essential": True},
    )
    try:
        registry.validate(dict(claims))
    except ExpiredTokenError as err:
        raise TokenRefused("the token has expired") from err
    except MissingClaimError as err:
        raise TokenRefused("the token lacks one of iss, aud, sub and exp") from err
    except InvalidClaimError as err:
        raise TokenRefused(_WRONG.get(err.claim, "one of the token's claims is wrong")) from err
    except (JoseError, ValueError, OverflowError) as err:
        raise TokenRefused("one of the token's claims is wrong") from err


_WRONG = {
    "iss": "the token is of another issuer (iss)",
    "aud": "the token is for somebody else (aud)",
    "sub": "the token's sub isn't a name",
    "exp": "the token's exp isn't a time",
    "nbf": "the token isn't valid yet (nbf)",
    "iat": "the token is from the future (iat): compare the clocks",
}


def _decoded(part: str, what: str) -> bytes:
    if what == "header" and len(part) > _LONGEST_HEADER:
        raise TokenRefused("the token's header is too long")
    try:
        # Altered characters would go unnoticed without `validate`.
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as err:
        raise TokenRefused(f"the token's {what} isn't base64url") from err


def _document(content: bytes, what: str) -> dict[str, Any]:
    """A JSON object without names that come twice, of which two readers may take different ones."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise TokenRefused(f"the token's {what} have a name twice")
        return found

    try:
        found = json.loads(content, object_pairs_hook=once)
    except (ValueError, RecursionError) as err:
        raise TokenRefused(f"the token's {what} can't be read as JSON") from err
    if not isinstance(found, dict):
        raise TokenRefused(f"the token's {what} isn't a JSON object")
    return found


def _name(said: str) -> str:
    escaped: str = texts.escaped(said.strip())
    return escaped.encode(errors="backslashreplace").decode()[:_LONGEST_NAME]


def _short(said: object) -> str:
    shown = json.dumps(said) if isinstance(said, str) else type(said).__name__
    return shown if len(shown) <= 80 else f"{shown[:80]}…"
