"""What a client sends to be let in: the given key or token, ``FARM_KEY`` or ``FARM_TOKEN``, or the key of the
farm on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import httpx2

from farm.errors import InvalidRequest, TokenRefused
from farm.machine import listeners
from farm.specs.home import DEFAULT_HOME
from farm.trust import credentials

_MAKE = "or FARM_KEY to one that an administrator has made: farm keys create"
_ANOTHER = "another one from the issuer"


class Found(NamedTuple):
    """A key or a token, if there is one, and what to do if the farm rejects it."""

    key: str | None
    hint: str
    file: Path | None = None  #: that it is in: of this user's own farm
    refused_hint: str = TokenRefused.default_hint  #: if the farm says what is wrong with a token


def find(
    given: str | None, *, is_local: bool, home: Path | None = None, token: str | None = None
) -> Found:
    """The key to use for a farm, or the token of an OpenID Connect issuer.

    Parameters:
        given: the caller's, which takes precedence; if it is empty, none is sent.
        is_local: whether the farm is on this machine. The key of this user's own farm is never sent to
            another.
        home: the folder of this user's own farm; by default FARM_HOME.
        token: the caller's, instead of a key.

    Raises:
        InvalidRequest: there are a key and a token, or a key in a token's place.
    """
    if given is not None and token is not None:
        raise InvalidRequest("a key and a token are given", hint="pass one of them")
    if token is not None:
        return _token(token.strip(), "the given token", f"pass {_ANOTHER}")
    if given is not None:
        what = "pass a key of this farm"
        return Found(given or None, f"{what}; {_makes()}")
    variable = os.environ.get(credentials.VARIABLE, "").strip()
    held = os.environ.get(credentials.TOKEN_VARIABLE, "").strip()
    if variable and held:
        raise InvalidRequest(
            f"{credentials.VARIABLE} and {credentials.TOKEN_VARIABLE} are both set",
            hint="unset one of them: a key and a token may be different people's",
        )
    if held:
        name = credentials.TOKEN_VARIABLE
        return _token(held, name, f"set {name} to {_ANOTHER}")
    if variable:
        return Found(variable, f"{credentials.VARIABLE} isn't a key of this farm; {_makes()}")
    if not is_local:
        return Found(None, f"set {credentials.VARIABLE} to a key of this farm; {_makes()}")
    file = credentials.home_file(home or home_of_user())
    key = credentials.read(file)
    if key is None:
        return Found(
            None,
            f"there is no key in {file}: set FARM_HOME to the home that `farm up` has printed, {_MAKE}",
        )
    return Found(
        key,
        f"the key in {file} is another farm's: set FARM_HOME to the home that this one has printed, {_MAKE}",
        file,
    )


def _token(token: str, called: str, renew: str) -> Found:
    if credentials.id_of(token) is not None:
        raise InvalidRequest(
            f"{called} is a key of a farm's",
            hint=f"set {credentials.VARIABLE} to it, or pass it as the key",
        )
    return Found(
        token,
        f"this farm takes no tokens, or {called} isn't one: its operator names an issuer (FARM_OIDC)",
        refused_hint=f"{renew}, or use a key: {_makes()}",
    )


def check_listener(url: httpx2.URL, file: Path) -> None:
    """Refuse to send this user's own key to a port where somebody else listens.

    Parameters:
        file: that has the key; its owner may run the farm.

    Raises:
        InvalidRequest
    """
    port = url.port or {"https": 443}.get(url.scheme, 80)
    others = listeners.owners(url.host, port) - {0, os.getuid(), file.stat().st_uid}
    if others:
        raise InvalidRequest(
            f"another user of this machine ({min(others)}) listens at port {port}: the key in {file} isn't "
            "sent there",
            hint="start your farm at another port (farm up --port); or, to use theirs, set FARM_KEY to a key "
            "that they gave you",
        )


def _makes() -> str:
    return "an administrator makes one: farm keys create"


def home_of_user() -> Path:
    """The folder in which this user keeps keys: the home of the user's own farm, if there is one."""
    return Path(os.environ.get("FARM_HOME") or DEFAULT_HOME).expanduser()
