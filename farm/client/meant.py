"""Which farm a client's errors are about, and how its user says so."""

from __future__ import annotations

from dataclasses import dataclass

from farm.errors import FarmError, KeyNeeded, ScopeMissing
from farm.trust import credentials


@dataclass(frozen=True, kw_only=True)
class Meant:
    """A farm, as a command's user means it.

    Parameters:
        called: what errors call it; empty where there is only one.
        address: what names its address.
        key: the variable that holds the key for it.
    """

    called: str = ""
    address: str = "FARM_URL (--url)"
    key: str = credentials.VARIABLE

    @property
    def start_hint(self) -> str:
        """What to do if nothing answers at its address."""
        if self.called:
            return f"is it running, and is that its address? {self.address} says where it is"
        return f"is the farm running? start one with: farm up; or set {self.address} to where it is"

    def told(self, err: FarmError, url: str) -> None:
        """Have an error say which farm it is of."""
        if not self.called:
            return
        err.detail = f"{self.called}, {url}: {err.detail}"
        if self.key == credentials.VARIABLE:
            return  # the client's own hints are about it
        if isinstance(err, ScopeMissing):
            err.hint = f"{self.key} holds the key for that farm: {err.hint}"
        elif isinstance(err, KeyNeeded):
            err.hint = (
                f"set {self.key} to a key of that farm; an administrator there makes one: "
                "farm keys create"
            )
