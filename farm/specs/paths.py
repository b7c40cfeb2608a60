"""Paths on the farm's own page."""

from __future__ import annotations

import re

#: Not ``//host`` or ``/\\host``, which a browser takes for another's address.
_LOCAL = re.compile(r"/(?![/\\])[^\x00-\x20\\]{0,500}")


def local(path: str) -> str:
    """A path that leads nowhere but to this farm: ``/`` for one that might."""
    return path if _LOCAL.fullmatch(path) else "/"
