"""Checks the host names the farm is reached by, and which web pages may send it requests.

Any web page can make a browser send requests to a farm on the same machine or network. `Origin` and
`Sec-Fetch-Site` show it, unless the page's own name was rebound to this address (DNS rebinding): then that
name is in `Host`. IP addresses can't be rebound, so any is accepted.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from farm.errors import CrossSite, InvalidRequest, WrongHost

_READS = ("GET", "HEAD", "OPTIONS")
_OWN = ("same-origin", "none")  #: from one of the farm's pages, or typed by the user
Headers = Mapping[str, Sequence[str]]  #: lower-case name → all values sent


class Hosts:
    """A farm's host names.

    Parameters:
        named: from the settings; if empty, this machine's own names.
    """

    def __init__(self, named: Collection[str] = ()) -> None:
        self._named = tuple(name.lower() for name in named)
        own = socket.gethostname().lower()
        self._usual = {"localhost", own, f"{own}.local"}

    def check(self, method: str, headers: Headers) -> None:
        """Refuse requests for another host name, or from another site's page.

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
        # A browser that sends same-origin has compared them itself, before any proxy changed the host.
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
        # Not "*": accepting any host name doesn't make every page the farm's own.
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
