"""Streams that go on where a lost connection left them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator

from farm.errors import StorageUnavailable

log = logging.getLogger(__name__)

#: Connections lost in a row, without a byte between them.
_ATTEMPTS = 6
_FIRST_S, _LONGEST_S = 0.1, 5.0

#: The bytes from a position on, over one connection.
OpenAt = Callable[[int], Iterator[bytes]]


def resumed(
    open_at: OpenAt, start: int, stop: int, *, attempts: int = _ATTEMPTS
) -> Iterator[bytes]:
    """The bytes from ``start`` to before ``stop``, over as many connections as it takes.

    Parameters:
        open_at: raises StorageUnavailable when the connection is lost.
        attempts: how many may be lost in a row.

    Raises:
        StorageUnavailable
    """
    lost = 0
    while start < stop:
        before = start
        try:
            for chunk in open_at(start):
                start += len(chunk)
                yield chunk if start <= stop else chunk[: stop - start]
                if start >= stop:
                    return
            raise StorageUnavailable(f"the answer ends {stop - start} bytes early")
        except StorageUnavailable as err:
            lost = 1 if start > before else lost + 1
            if lost >= attempts:
                raise
            log.info("a transfer goes on at byte %s: %s", start, err.detail)
            _wait(lost)


def _wait(lost: int) -> None:
    longest = min(_FIRST_S * 2 ** (lost - 1), _LONGEST_S)
    time.sleep(longest * random.uniform(0.5, 1))  # noqa: S311 no secret


def skipping(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """The chunks without their first bytes: of an answer that ignored where it was to begin."""
    for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:]
        count = max(0, count - len(chunk))
