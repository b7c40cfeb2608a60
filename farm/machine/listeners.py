"""Who listens on this machine's own ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LISTENING = "0A"
_TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def owners(host: str, port: int) -> set[int]:
    """The ids of the users whose processes may answer at a local address; empty if nobody can tell.

    Parameters:
        host: an IP address, or a name that may be any of this machine's.
    """
    wanted: Address | None = None
    with suppress(ValueError):
        wanted = ipaddress.ip_address(host)
    found: set[int] = set()
    for version, table in _TABLES.items():
        if wanted is not None and wanted.version < version and found:
            continue  # IPv6's any takes IPv4 where nobody else does
        for address, uid in _listening(table, port):
            if wanted is None or address == wanted or address.is_unspecified:
                found.add(uid)
    return found


def _listening(table: Path, port: int) -> Iterator[tuple[Address, int]]:
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:  # another system, or hidden
        return
    for line in lines:
        fields = line.split()
        with suppress(ValueError, IndexError):
            host, _, at = fields[1].partition(":")
            if fields[3] == _LISTENING and int(at, 16) == port:
                yield _address(host), int(fields[7])


def _address(text: str) -> Address:
    """The kernel writes each 32 bits in this machine's byte order."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    return ipaddress.ip_address(b"".join(words))
