"""The caller of a request, as scheduling and the audit see it."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from farm.specs import texts
from farm.specs.limits import NO_LIMITS, Limits
from farm.specs.scopes import Scope

#: What a key's ``Caller.client`` begins with.
KEY = "key "


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Somebody with a key, or without one where none is needed."""

    key_id: str | None = None
    name: str
    scopes: frozenset[Scope] = frozenset(Scope)
    address: str = ""
    label: str = ""  #: the client's own name; never trusted
    until: datetime | None = None  #: when the token expires that it came with
    limits: Limits = NO_LIMITS  #: the key's, with the farm's defaults

    @property
    def signature(self) -> str:
        """Who it is, for people who read a history: the key's name, or else what the client calls itself."""
        return self.name if self.key_id else self.label or self.name

    @property
    def client(self) -> str:
        """The client for fair queuing: the key, or else the label."""
        return f"{KEY}{self.key_id}" if self.key_id else self.label or self.address


#: The caller for the farm's own actions.
THE_FARM = Caller(name="the farm")


def allows(held: Collection[Scope], wanted: Scope) -> bool:
    """Whether a key with these scopes may do something that needs ``wanted``."""
    return wanted in held or Scope.ADMIN in held or (wanted is Scope.READ and bool(held))


def this_user(address: str = "") -> Caller:
    """The user on this machine, who has direct access to the database."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return Caller(
        name=texts.escaped(f"{user}@{socket.gethostname()}"), address=address or "this machine"
    )
