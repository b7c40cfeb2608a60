"""What the farm asks to be sent again: it does only so much at once, and the less the slower its machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx2

_PATIENCE_S = 120.0


def until_served(ask: Callable[[], httpx2.Response]) -> httpx2.Response:
    """The first answer that doesn't say to come again."""
    deadline = time.monotonic() + _PATIENCE_S
    while (answer := ask()).status_code in (429, 503):
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer
