"""Whose bearer tokens the farm accepts beside its keys, and what they allow."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator

from farm.specs.scopes import Scope
from farm.specs.values import Value

#: Signatures by a private key alone: no ``none``, and no ``HS256``, whose key would be the public one.
# fmt: off
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"
]
# fmt: on
_Text = Annotated[str, StringConstraints(min_length=1, max_length=400)]


class Oidc(Value):
    """An OpenID Connect issuer, and what its tokens allow."""

    issuer: _Text = Field(description="its address, as in its tokens' `iss`")
    audience: _Text = Field(description="the farm's name to it: a token's `aud` has it")
    jwks_url: str = Field("", description="of its keys; by default as its discovery says")
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256")
    leeway_s: Annotated[int, Field(ge=0, le=300)] = Field(
        30, description="how far its clock may be off"
    )
    scopes_claim: _Text = Field(
        "scope", description="where a token says what it allows; with dots: `realm_access.roles`"
    )
    roles: Mapping[str, tuple[Scope, ...]] = Field(
        {f"farm:{scope}": (scope,) for scope in Scope},
        description="value in that claim → scopes of the farm",
    )
    every_token: tuple[Scope, ...] = Field((), description="scopes that every token of it has")
    name_claim: _Text = Field("sub", description="how the audit and builds call its holder")

    @field_validator("issuer", "jwks_url")
    @classmethod
    def _is_private(cls, url: str) -> str:
        # Whoever could answer in its place would say which keys sign tokens.
        if url and not is_trustworthy(url):
            raise ValueError("use https://, or http:// on this machine alone")
        return url

    def scopes(self, claims: Mapping[str, Any]) -> frozenset[Scope]:
        """What a token allows."""
        found: Any = claims
        for part in [self.scopes_claim] if self.scopes_claim in claims else self._path:
            found = found.get(part) if isinstance(found, Mapping) else None
        values = found.split() if isinstance(found, str) else found
        said = [one for one in values if isinstance(one, str)] if isinstance(values, list) else []
        return frozenset(self.every_token).union(*(self.roles.get(one, ()) for one in said))

    @property
    def _path(self) -> list[str]:
        return self.scopes_claim.split(".")


def is_trustworthy(url: str) -> bool:
    """Whether nobody on the way can change what an address answers."""
    try:
        where = urlsplit(url)
        host = where.hostname or ""
    except ValueError:
        return False
    if where.scheme == "https":
        return bool(host) and where.username is None
    return where.scheme == "http" and is_here(host)


def is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
