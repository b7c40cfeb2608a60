"""The caller of a request, as scheduling and the audit see it."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass

from farm.specs.scopes import Scope


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Somebody with a key, or with none where none is needed."""

    key_id: str | None = None
    name: str
    scopes: frozenset[Scope] = frozenset(Scope)
    address: str = ""
    label: str = ""  #: the client's own name; never trusted

    @property
    def client(self) -> str:
        """Who takes turns with others: the key, and without one whatever it calls itself."""
        return f"key {self.key_id}" if self.key_id else self.label or self.address


#: What the farm does on its own.
THE_FARM = Caller(name="the farm")


def allows(held: Collection[Scope], wanted: Scope) -> bool:
    """Whether a key with these scopes may do what needs that one."""
    return wanted in held or Scope.ADMIN in held or (wanted is Scope.READ and bool(held))


def this_user(address: str = "") -> Caller:
    """Somebody at this machine who has the database in their hands."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    return Caller(name=f"{user}@{socket.gethostname()}", address=address or "this machine")
