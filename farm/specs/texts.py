"""Lines of text that people type and others see on a terminal or in a log.

Control characters could move a terminal's cursor or begin another line of a log; bidirectional controls could
make a text read as another.
"""

from __future__ import annotations

import re
from typing import Any

#: C0 and C1 controls, Unicode's line separators, and its bidirectional controls; as in a pattern.
CONTROLS = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
#: What a line consists of, for a schema.
LINE = rf"[^{CONTROLS}]"
_CONTROL = re.compile(f"[{CONTROLS}]")


def fault(text: str) -> str | None:
    """What keeps a text from being a line; None if it is one."""
    found = _CONTROL.search(text)
    if found is None:
        return None
    return (
        f"it has a control character, {_shown(found)}: write one line, without line breaks, tabs, "
        "escape sequences or bidirectional controls"
    )


def checked(value: Any) -> Any:
    """For a field: a line, without white space around it.

    Raises:
        ValueError
    """
    if not isinstance(value, str):
        return value
    line = value.strip()
    why = fault(line)
    if why is not None:
        raise ValueError(why)
    return line


def without(text: str) -> str:
    """The text without control characters."""
    return _CONTROL.sub("", text)


def escaped(value: Any) -> Any:
    """A value with the control characters in its texts escaped, as in ``\\x1b`` and ``\\n``."""
    if isinstance(value, str):
        return _CONTROL.sub(_shown, value)
    if isinstance(value, dict):
        return {escaped(name): escaped(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(one) for one in value]
    return value


def _shown(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
