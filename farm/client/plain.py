"""Text from a farm, without terminal control characters.

Names, errors and logs may come from strangers' models. Control characters in them could move the cursor, set
the title or overwrite the screen; bidirectional ones could disguise text.
"""

from __future__ import annotations

import json
import re
from typing import Any

from farm.specs.texts import CONTROLS

#: The controls but tab and line feed.
_CONTROL = re.compile(rf"(?![\t\n])[{CONTROLS}]")
#: In JSON they are escaped; C1 and the bidirectional controls may also be literal.
_MAY_BE_IN_JSON = re.compile(
    rb"\\u00|\\u06|\\u20|\\[bfr]|\xc2[\x80-\x9f]|\xd8\x9c|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]|\x7f"
)


def plain(text: str) -> str:
    """The text with control characters escaped, as in ``\\x1b``; a carriage return ends a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), lines)


def plain_json(content: bytes) -> bytes:
    """Parse JSON and make its strings plain.

    Raises:
        ValueError: it isn't JSON.
    """
    if not _MAY_BE_IN_JSON.search(content):
        return content
    return json.dumps(plain_value(json.loads(content))).encode()


def plain_value(value: Any) -> Any:
    """The same value with its strings made plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [plain_value(one) for one in value]
    if isinstance(value, dict):
        return {plain(key): plain_value(one) for key, one in value.items()}
    return value
