"""By which names the farm is reached, and which pages may ask it to do something.

A page of anywhere can make a browser ask a farm on the same machine or network. It says so in `Origin` and
`Sec-Fetch-Site`, unless its own name was made to lead here (DNS rebinding): then it says that name in
`Host`. An address can't be made to lead anywhere else, and so any is taken.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from farm.errors import CrossSite, InvalidRequest, WrongHost

_READS = ("GET", "HEAD", "OPTIONS")
_OWN = ("same-origin", "none")  #: of a page of the farm, or typed by the user
Headers = Mapping[str, Sequence[str]]  #: by their names in lower case, all that were sent


class Hosts:
    """The names of one farm.

    Parameters:
        named: by the settings; without any, this machine's own.
    """

    def __init__(self, named: Collection[str] = ()) -> None:
        self._named = tuple(name.lower() for name in named)
        own = socket.gethostname().lower()
        self._usual = {"localhost", own, f"{own}.local"}

    def check(self, method: str, headers: Headers) -> None:
        """Refuse what is asked by another name, or by a page of another site.

        Raises:
            WrongHost, CrossSite, InvalidRequest
        """
        hosts = headers.get("host", ())
        for host in hosts:
            if not self._is_ours(_name(host)):
                raise WrongHost(f"the farm doesn't accept the host name {host[:200]!r}")
        self._check_site(method, headers, hosts)

    def _check_site(self, method: str, headers: Headers, hosts: Sequence[str]) -> None:
        sites = headers.get("sec-fetch-site", ())
        if any(site not in _OWN for site in sites):
            # A link on another page may lead here.
            opens = set(headers.get("sec-fetch-mode", ())) == {"navigate"}
            if not (opens and method in _READS):
                raise CrossSite("the request comes from another site's page")
        if method in _READS:
            return
        # A browser that says same-origin has compared them itself, before any proxy changed the host.
        for origin in () if sites else headers.get("origin", ()):
            where = urlsplit(origin) if _is_url(origin) else None
            same = where is not None and where.netloc.lower() in {h.lower() for h in hosts}
            if where is None or not (same or self._is_named(where.hostname or "")):
                raise CrossSite(f"the request comes from a page of {origin[:200]!r}")

    def _is_ours(self, name: str) -> bool:
        return (
            "*" in self._named
            or name in self._usual
            or name.endswith(".localhost")
            or _is_address(name)
            or self._is_named(name)
        )

    def _is_named(self, name: str) -> bool:
        # Not "*": that a farm has any name doesn't make any page its own.
        return any(fnmatchcase(name, one) for one in self._named if one != "*")


def _is_url(origin: str) -> bool:
    try:
        return bool(urlsplit(origin).netloc)
    except ValueError:
        return False


def _name(host: str) -> str:
    """A host without its port, in lower case.

    Raises:
        InvalidRequest
    """
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError as err:
        raise InvalidRequest(
            f"Host: {host[:200]!r} isn't a host",
            hint="use a name or an address, and optionally a port",
        ) from err


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
