"""Which key a client sends: the given one, ``FARM_KEY``, or the key of the farm on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import httpx2

from farm.errors import InvalidRequest
from farm.machine import listeners
from farm.specs.home import DEFAULT_HOME
from farm.trust import credentials

_MAKE = "or FARM_KEY to one that an administrator has made: farm keys create"


class Found(NamedTuple):
    """A key, if there is one, and what to do if the farm rejects it."""

    key: str | None
    hint: str
    file: Path | None = None  #: that it is in: of this user's own farm


def find(given: str | None, *, is_local: bool, home: Path | None = None) -> Found:
    """The key to use for a farm.

    Parameters:
        given: the caller's, which takes precedence; if it is empty, none is sent.
        is_local: whether the farm is on this machine. The key of this user's own farm is never sent to
            another.
        home: the folder of this user's own farm; by default FARM_HOME.
    """
    if given is not None:
        what = "pass a key of this farm"
        return Found(given or None, f"{what}; {_makes()}")
    variable = os.environ.get(credentials.VARIABLE, "").strip()
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
